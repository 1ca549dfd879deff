"""What all tests share: the option that rewrites transcripts."""


def pytest_addoption(parser):
    parser.addoption("--rewrite", action="store_true", help="write into the transcripts what their commands give now")
