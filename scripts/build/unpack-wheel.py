"""unpack-wheel.py WHEEL FOLDER: the parts of a torch wheel that a C++ program needs. Checks every file's checksum."""

import fnmatch
import sys
import zipfile

KEEP = ("torch/lib/", "torch/include/", "torch/share/cmake/", "torch.libs/")
# The terms under which its libraries may be passed on: torch-VERSION.dist-info/licenses/.
LICENSES = "torch-*.dist-info/licenses/*"
# Python's own side of the libraries, and the libraries of PyTorch's tests.
DROP = ("*libtorch_python.*", "*_test.*", "*libbackend_with_compiler.*", "*libaoti_custom_ops.*")


def main(wheel, folder):
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            wanted = name == "torch/version.py" or name.startswith(KEEP) or fnmatch.fnmatch(name, LICENSES)
            if wanted and not (name.startswith("torch/lib/") and any(fnmatch.fnmatch(name, p) for p in DROP)):
                archive.extract(name, folder)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (OSError, zipfile.BadZipFile) as error:
        sys.exit(f"{sys.argv[1]}: {error}")
