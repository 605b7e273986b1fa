"""Smoke test of the image `base`, run by `apptainer test` and by the tests of its children."""

import locale
import ssl
import sys


def main() -> None:
    """Check what every image stands on; any failure is an exception."""
    assert sys.version_info[:2] == (3, 11), sys.version
    assert locale.getpreferredencoding(False).upper() == "UTF-8", locale.getpreferredencoding(False)
    assert sys.getfilesystemencoding() == "utf-8", sys.getfilesystemencoding()
    roots = ssl.create_default_context().cert_store_stats()["x509_ca"]
    assert roots > 50, f"{roots} CA certificates"
    print(f"base: Python {sys.version.split()[0]}, UTF-8, {roots} CA certificates")


if __name__ == "__main__":
    main()
