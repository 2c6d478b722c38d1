# Luthier on an NVIDIA GPU: docker build --file docker/cuda.Dockerfile --tag luthier:cuda .
# Last built on 2026-11-28, by Buildah, and used there on a CPU: NOT RUN on a GPU. tests/docs/test_docker.py
# checks it without building it.
FROM python:3.11-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 \
    LUTHIER_CACHE=/cache \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /opt/luthier
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
# The wheels of PyTorch on the package index bring CUDA's libraries; the driver is the host's.
RUN pip install --constraint constraints.txt '.[serve,rag,export,sheets,trackers]' \
    && useradd --create-home --uid 1000 luthier \
    && mkdir /work /cache \
    && chown luthier /work /cache
COPY recipes /opt/luthier/recipes

USER 1000
WORKDIR /work
VOLUME ["/work", "/cache"]
ENTRYPOINT ["luthier"]
CMD ["--help"]
