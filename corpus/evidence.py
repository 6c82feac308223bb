"""Recipe of the evidence model's text: six programming and six natural languages, about 4 MB of each."""

from __future__ import annotations

import re
from dataclasses import replace

from corpus.recipe import RECIPE, Recipe, Source, help_and_handbook, npm_source

_TESTS = r"/[Tt]ests?/|Test\.(php|java)$"


def _again(domain: str, **shares: float) -> tuple[Source, ...]:
    """Return sources of the demo's recipe with other shares; in package names, `_` replaces `-` and `.`."""
    known = {re.sub(r"\W", "_", source.package): source for source in RECIPE[domain]}
    return tuple(replace(known[name], share=share) for name, share in shares.items())


def _php(package: str, licence: str, share: float, folder: str = "php", exclude: str = r"(?!)") -> Source:
    skipped = rf"{_TESTS}|/Resources/|autoload|/(lang|i18n|locale)s?/|{exclude}"
    return Source(package, licence, share, (f"usr/share/{folder}/**/*.php",), skipped)


def _python(package: str, licence: str, share: float, folder: str) -> Source:
    modules = f"usr/lib/python3/dist-packages/{folder}/**/*.py"
    return Source(package, licence, share, (modules,), r"/tests?/|/benchmarks/|_generated|/_?antlr/")


def _works(office: str, handbook: str, short: str) -> tuple[Source, ...]:
    """Return the same four works in a natural language."""
    help_pages, handbook_pages = help_and_handbook(office, handbook)
    return (
        replace(help_pages, share=0.5, include=(f"usr/share/libreoffice/help/{office}/text/**/*.html",)),
        replace(handbook_pages, share=0.17),
        Source(
            "installation-guide-amd64",
            "GPL-2.0-or-later",
            0.07,
            (f"usr/share/doc/installation-guide-amd64/{short}/*.html",),
            r"/(index|apf\w*|ape\w*)\.html$",
        ),
        Source(
            f"gimp-help-{short}",
            "GFDL-1.2-or-later",
            0.26,
            (f"usr/share/gimp/2.0/help/{short}/*.html",),
            r"/(index|bibliography|glossary|gfdl[^/]*|legal[^/]*|gimp-introduction-(?:history|authors)[^/]*)\.html$",
        ),
    )


_JDK = (
    "java.base",
    "java.desktop",
    "java.xml",
    "java.sql",
    "java.logging",
    "java.management",
    "java.naming",
    "java.net.http",
    "java.rmi",
    "jdk.compiler",
    "jdk.javadoc",
    "jdk.jdi",
    "jdk.jfr",
    "jdk.jlink",
    "jdk.jshell",
)

_DOMAINS: dict[str, tuple[Source, ...]] = {
    "cpp": (
        *_again("cpp", libboost1_81_dev=0.2, qtbase5_examples=0.1, libabsl_dev=0.07),
        Source("libcgal-dev", "GPL-3.0-or-later AND LGPL-3.0-or-later", 0.12, ("usr/include/CGAL/**/*.h",)),
        Source("libeigen3-dev", "MPL-2.0", 0.06, ("usr/include/eigen3/**/*",), r"lapacke|\.in$"),
        Source("libpoco-dev", "BSL-1.0", 0.05, ("usr/include/Poco/**/*.h",)),
        Source("wx3.2-examples", "LGPL-2.0-or-later WITH WxWindows-exception-3.1", 0.1, ("usr/share/doc/**/*.cpp",)),
        npm_source(
            "react-native",
            "0.68.7",
            0.12,
            tuple(f"package/{part}/**/*.{end}" for part in ("ReactAndroid", "ReactCommon") for end in ("cpp", "h")),
            r"/ios/|/apple/|/macos/|/RCT",
        ),
        npm_source(
            "rocksdb",
            "5.2.1",
            0.15,
            ("package/deps/rocksdb/**/*.cc", "package/deps/rocksdb/**/*.h"),
            r"/java/",
            licence="GPL-2.0-only OR Apache-2.0",
        ),
        npm_source(
            "leveldown",
            "6.1.1",
            0.03,
            ("package/deps/leveldb/**/*.cc", "package/deps/leveldb/**/*.h"),
            licence="BSD-3-Clause",
        ),
    ),
    "java": (
        Source(
            "openjdk-17-source",
            "GPL-2.0-only WITH Classpath-exception-2.0",
            0.5,
            tuple(f"usr/lib/jvm/openjdk-17/lib/src.zip.files/{module}/**/*.java" for module in _JDK),
            r"/resources/|package-info|module-info",
            archive="usr/lib/jvm/openjdk-17/lib/src.zip",
        ),
        Source(
            "openjfx-source",
            "GPL-2.0-only WITH Classpath-exception-2.0",
            0.22,
            ("usr/share/openjfx/lib/src.zip.files/**/*.java",),
            r"package-info|module-info",
            archive="usr/share/openjfx/lib/src.zip",
        ),
        npm_source("react-native", "0.68.7", 0.2, ("package/ReactAndroid/**/*.java",)),
        npm_source("@capacitor/android", "8.5.2", 0.04, ("package/**/*.java",)),
        npm_source("cordova-android", "15.1.0", 0.04, ("package/**/*.java",), licence="Apache-2.0"),
    ),
    "javascript": (
        *_again("javascript", three=0.15, webpack=0.12, eslint=0.1, mocha=0.02, express=0.01),
        npm_source("phaser", "4.2.1", 0.15, ("package/src/**/*.js",), r"/const|shaders|/index\.js$"),
        npm_source(
            "@cesium/engine", "24.0.0", 0.15, ("package/Source/**/*.js",), r"/Shaders/|ThirdParty", licence="Apache-2.0"
        ),
        npm_source("ol", "10.11.0", 0.12, ("package/**/*.js",), r"/(dist|build|worker)/", licence="BSD-2-Clause"),
        npm_source("mongoose", "9.12.1", 0.06, ("package/lib/**/*.js",)),
        npm_source("knex", "3.3.0", 0.05, ("package/lib/**/*.js",)),
        npm_source("svelte", "5.57.3", 0.05, ("package/src/**/*.js",), r"/compiler/phases/1-parse/utils/entities"),
        npm_source("leaflet", "1.9.4", 0.02, ("package/src/**/*.js",), licence="BSD-2-Clause"),
    ),
    "lua": (
        *_again("lua", prosody=0.1, prosody_modules=0.05, rspamd=0.12, luarocks=0.04, lua_penlight=0.03, lua_http=0.02),
        *_again("lua", lua_check=0.02),
        Source(
            "nmap-common",
            "LicenseRef-nmap-GPL-2",
            0.3,
            ("usr/share/nmap/**/*.nse", "usr/share/nmap/**/*.lua"),
            r"/data/",
        ),
        Source("awesome", "GPL-2.0-or-later", 0.12, ("usr/share/awesome/**/*.lua",)),
        Source("minetest-data", "LGPL-2.1-or-later", 0.1, ("usr/share/games/minetest/**/*.lua",)),
        Source("luakit", "GPL-3.0-or-later", 0.06, ("usr/share/luakit/**/*.lua",)),
        Source("neovim-runtime", "Apache-2.0", 0.04, ("usr/share/nvim/runtime/lua/**/*.lua",)),
    ),
    "php": (
        *_again("php", composer=0.06, php_symfony_http_kernel=0.04, php_symfony_dependency_injection=0.04),
        *_again("php", php_symfony_form=0.03, phpunit=0.06, php_illuminate_database=0.03, php_phpseclib3=0.03),
        *_again("php", php_league_commonmark=0.03, php_twig=0.03),
        _php("php-symfony-console", "MIT", 0.03),
        _php("php-symfony-validator", "MIT", 0.03),
        _php("php-doctrine-orm", "MIT", 0.05),
        _php("mediawiki", "GPL-2.0-or-later", 0.24, "mediawiki", r"/languages/data/|/data/|domains\.php"),
        _php("wordpress", "GPL-2.0-or-later", 0.1, "wordpress", r"/sodium_compat/|/js/"),
        _php("phpmyadmin", "GPL-2.0-or-later", 0.1, "phpmyadmin", r"/Config/Forms/"),
        _php("roundcube-core", "GPL-3.0-or-later", 0.06, "roundcube", r"/localization/"),
        _php("dokuwiki", "GPL-2.0-only", 0.04, "dokuwiki", r"/lang/"),
    ),
    "python": (
        *_again("python", libpython3_11_stdlib=0.2, libpython3_11_minimal=0.05, python3_django=0.15),
        *_again("python", python3_twisted=0.15),
        _python("python3-sqlalchemy", "MIT", 0.12, "sqlalchemy"),
        _python("python3-networkx", "BSD-3-Clause", 0.1, "networkx"),
        _python("python3-sympy", "BSD-3-Clause", 0.13, "sympy"),
        _python("mercurial-common", "GPL-2.0-or-later", 0.1, "mercurial"),
    ),
    "english": _works("en-US", "en-US", "en"),
    "french": _works("fr", "fr-FR", "fr"),
    "german": _works("de", "de-DE", "de"),
    "italian": _works("it", "it-IT", "it"),
    "russian": _works("ru", "ru-RU", "ru"),
    "spanish": _works("es", "es-ES", "es"),
}

EVIDENCE = Recipe(_DOMAINS, bytes_per_domain=4_000_000, ships=False, whole_pages=True)
