"""Guest images: what machines boot from cold. Built from Debian packages, or imported as a disk that boots by itself."""
