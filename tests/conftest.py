"""What all tests share: the option that rewrites transcripts, and that an example of hypothesis may take its time."""

from hypothesis import HealthCheck, settings

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no finding
settings.load_profile("patient")


def pytest_addoption(parser):
    parser.addoption("--rewrite", action="store_true", help="write into the transcripts what their commands give now")
