"""Public repositories on GitHub at fixed commits, which texts are read from."""


def folder_of(repository: str) -> str:
    """The folder of a clone: the name of the repository without its owner."""
    return repository.rpartition("/")[2]


def command(repository: str, commit: str) -> str:
    """The command that puts the clone into the current folder."""
    return f"git clone https://github.com/{repository} && git -C {folder_of(repository)} checkout {commit}"
