"""Fetch the libraries of the page that ``as_server web`` serves, at pinned versions: ``make vendor``.

Each archive is packed by npm and compared with its SHA-256 here. What the page needs of it goes to
``zmqagents/web/static/vendor``, with a digest of each file and the licences. A browser takes no bare name in an import
unless an inline map explains it, which the page's policy forbids: so these names become paths. Source maps are left
out, and the lines that name them.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PLACE = Path(__file__).parent.parent / "zmqagents" / "web" / "static" / "vendor"
ARCHIVES = {
    "preact@11.2.0": "3c4456766bd32b6b534d52bf4e9c2a29b33e7eedf6e96ed479300ba1a7888ebf",
    "htm@3.1.1": "2425b9bee11409177bcabc7f32e319926fc6690c1701c0b257c88bdff2d5ba90",
    "uplot@1.6.32": "4b8a8191e425658e3ea8c8c1314b0fc679c861ee3a1af2b20c7b16ba50b5133d",
    "@dagrejs/dagre@3.1.3": "12441833c8af49e5a241d94bfd53159875965876b3f4f3214abafe1ed6a9ee4c",
}
FILES = {
    "preact@11.2.0": {"dist/preact.mjs": "preact.mjs", "hooks/dist/hooks.mjs": "hooks.mjs"},
    "htm@3.1.1": {"dist/htm.mjs": "htm.mjs"},
    "uplot@1.6.32": {"dist/uPlot.iife.min.js": "uplot.js", "dist/uPlot.min.css": "uplot.css"},
    "@dagrejs/dagre@3.1.3": {"dist/dagre.esm.js": "dagre.mjs"},
}
BARE = {'from"preact"': 'from"./preact.mjs"'}
SOURCE_MAP = re.compile(r"^//# sourceMappingURL=.*\n?", re.MULTILINE)


def main() -> None:
    """Write the files, or say which archive is not what it was."""
    PLACE.mkdir(parents=True, exist_ok=True)
    digests: dict[str, dict[str, str]] = {}
    licences = []
    with tempfile.TemporaryDirectory() as directory:
        for name, expected in ARCHIVES.items():
            packed = subprocess.run(
                ["npm", "pack", "--silent", name], cwd=directory, check=True, capture_output=True, text=True
            )
            archive = Path(directory, packed.stdout.split()[-1])
            found = hashlib.sha256(archive.read_bytes()).hexdigest()
            if found != expected:
                sys.exit(f"{name} has the digest {found}, and not {expected}")
            with tarfile.open(archive) as files:
                licences.append(f"{name}\n{'=' * len(name)}\n\n{read(files, 'LICENSE')}")
                digests[name] = {new: write(new, read(files, old)) for old, new in FILES[name].items()}
    (PLACE / "LICENSES").write_text("\n".join(licences))
    (PLACE / "digests.json").write_text(json.dumps(digests, indent=1) + "\n")


def read(files: tarfile.TarFile, name: str) -> str:
    """A file of an archive of npm's."""
    file = files.extractfile(f"package/{name}")
    assert file is not None
    return file.read().decode()


def write(name: str, text: str) -> str:
    """Write a file as the page imports it; its digest."""
    for bare, path in BARE.items():
        text = text.replace(bare, path)
    data = SOURCE_MAP.sub("", text).encode()
    (PLACE / name).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    main()
