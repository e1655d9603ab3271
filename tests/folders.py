"""What lies in a folder."""


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


def contents(folder):
    """{place: bytes, or False for a folder}."""
    return {
        str(path.relative_to(folder)): path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
    }


def files(folder):
    """{place: bytes} of its files."""
    there = contents(folder).items()
    return {place: data for place, data in there if data is not False}


def numbers(store):
    """Numbers of the videos in a store's folder, in order."""
    return sorted(int(path.stem) for path in store.glob("[0-9]*"))
