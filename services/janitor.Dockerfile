# The image of the janitor, which needs neither torch nor ray. From the root of the repository:
#   docker build -f services/janitor.Dockerfile -t ghcr.io/x2l-cluster/janitor:0.1.0 .
FROM python:3.11-slim-bookworm AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /src
RUN python -m venv /opt/x2l
ENV PATH=/opt/x2l/bin:$PATH
COPY services/janitor.txt services/
RUN pip install --no-cache-dir --requirement services/janitor.txt
COPY pyproject.toml README.md LICENSE ./
COPY x2l_cluster ./x2l_cluster
RUN pip install --no-cache-dir --no-deps .

FROM python:3.11-slim-bookworm
RUN useradd --uid 1000 --create-home --home-dir /home/x2l x2l
COPY --from=build /opt/x2l /opt/x2l
COPY services /opt/x2l/app/services
ENV PATH=/opt/x2l/bin:$PATH PYTHONPATH=/opt/x2l/app PYTHONDONTWRITEBYTECODE=1
WORKDIR /home/x2l
USER 1000:1000
CMD ["python", "-m", "services.janitor"]
