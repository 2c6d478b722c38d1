# Luthier on CPUs: docker build --file docker/cpu.Dockerfile --tag luthier .
# Last built and used on 2026-11-28, by Buildah; tests/docs/test_docker.py checks it without building it.
FROM python:3.11-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 \
    LUTHIER_CACHE=/cache
WORKDIR /opt/luthier
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
# PyTorch's own index has a build without CUDA, which is much smaller.
RUN pip install --constraint constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu '.[serve,rag,export,sheets]' \
    && useradd --create-home --uid 1000 luthier \
    && mkdir /work /cache \
    && chown luthier /work /cache
COPY recipes /opt/luthier/recipes

USER 1000
WORKDIR /work
VOLUME ["/work", "/cache"]
ENTRYPOINT ["luthier"]
CMD ["--help"]
