# The image of every Ray pod: head, gateway, prefill, answer. From the root of the repository:
#   docker build -f services/ray.Dockerfile -t ghcr.io/x2l-cluster/ray:0.1.0 .
FROM python:3.11-slim-bookworm AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /src
RUN python -m venv /opt/x2l
ENV PATH=/opt/x2l/bin:$PATH
# First what is large and rarely changes. torch brings the CUDA libraries it needs; the node brings the driver.
RUN pip install --no-cache-dir "ray[default,serve]==2.60.0" "torch==2.13.0"
COPY pyproject.toml README.md LICENSE ./
COPY x2l_cluster ./x2l_cluster
# It is this folder that is installed, not a package of that name.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[cluster]"

FROM python:3.11-slim-bookworm
RUN useradd --uid 1000 --create-home --home-dir /home/x2l x2l
COPY --from=build /opt/x2l /opt/x2l
COPY services /opt/x2l/app/services
ENV PATH=/opt/x2l/bin:$PATH PYTHONPATH=/opt/x2l/app PYTHONDONTWRITEBYTECODE=1 RAY_USAGE_STATS_ENABLED=0
WORKDIR /home/x2l
USER 1000:1000
