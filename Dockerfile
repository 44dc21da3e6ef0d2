# syntax=docker/dockerfile:1

# The same Python as the tests.
FROM python:3.11.15-slim-trixie AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv --without-pip /venv
# Every store and the distributed set-up; a smaller image: --build-arg EXTRAS=distributed,metrics,pgvector,qdrant
ARG EXTRAS=all
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY runner ./runner
# Wheels only: nothing is compiled, so neither stage has a compiler.
RUN python -m pip --python /venv/bin/python install --only-binary=:all: --constraint constraints.txt ".[${EXTRAS}]"

FROM python:3.11.15-slim-trixie
LABEL org.opencontainers.image.title="vecrun" \
      org.opencontainers.image.description="Plan and apply for vector databases" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 vecrun \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin vecrun \
    && install --directory --owner vecrun --group vecrun /workspace
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# By number, so that Kubernetes can check runAsNonRoot.
USER 10001:10001
WORKDIR /workspace
ENTRYPOINT ["vecrun"]
CMD ["--help"]
