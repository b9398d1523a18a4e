# The API, and the migrations that one-shot containers run. No torch in here.
FROM python:3.12-slim-bookworm

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONPATH=/srv/lethe
WORKDIR /srv/lethe

# The worker has the same user id: both write to the artifacts volume, which takes its owner from this folder.
RUN useradd --uid 10001 --no-create-home --home-dir /var/lib/lethe --shell /usr/sbin/nologin lethe \
    && install -d -o lethe -g lethe /var/lib/lethe /var/lib/lethe/artifacts

# Only the dependencies: no package folder is here yet, so a change of code keeps this layer.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN pip install -c constraints.txt '.[s3]'

COPY core ./core
COPY api ./api
COPY migrations ./migrations

USER lethe
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["python", "-m", "uvicorn", "api.app:create_app", "--factory", "--host", "0.0.0.0", "--port", "8000", \
     "--ws", "none", "--timeout-graceful-shutdown", "3"]
