# A worker and its engine, for one NVIDIA GPU. The `base` image holds the CUDA runtime; torch's own packages bring cuBLAS,
# cuDNN and NCCL, for the CUDA version that constraints.txt pins, so a larger image would hold them twice.
FROM nvidia/cuda:13.0.2-base-ubuntu24.04

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONPATH=/srv/lethe \
    PATH=/opt/venv/bin:$PATH
WORKDIR /srv/lethe

RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3.12 python3.12-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3.12 -m venv /opt/venv

# The API has the same user id: both write to the artifacts volume, which takes its owner from this folder.
RUN useradd --uid 10001 --no-create-home --home-dir /var/lib/lethe --shell /usr/sbin/nologin lethe \
    && install -d -o lethe -g lethe /var/lib/lethe /var/lib/lethe/artifacts /var/lib/lethe/work

# Only the dependencies: no package folder is here yet, so a change of code keeps this layer.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN pip install -c constraints.txt '.[embedding,engine,s3]'

# Of the API a worker may see the store and nothing else.
COPY core ./core
COPY api/__init__.py ./api/
COPY api/store ./api/store
COPY worker ./worker

USER lethe
# The list of fonts that plots are drawn with: made here, where each container's first job would otherwise wait for it.
RUN python -c "import matplotlib.font_manager"
# Asks this container's own worker through the broker, so a consumer that stopped consuming is seen.
HEALTHCHECK CMD ["sh", "-c", "exec python -m celery -A worker.app inspect ping --destination celery@$(hostname) --timeout 10"]
CMD ["python", "-m", "celery", "-A", "worker.app", "worker", "--pool=threads", "--concurrency=1"]
