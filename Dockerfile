# mrcnn serve on CPUs. From the root of a checkout, and then with the directory of a trained detector:
#   docker build -t detector .
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/runs/mine:/model:ro" detector
FROM python:3.12-slim AS build
WORKDIR /source
# dependencies first: they change seldom, and Docker keeps the layer
COPY requirements.txt .
RUN python -m venv /opt/mrcnn \
    && /opt/mrcnn/bin/pip install --no-cache-dir --no-compile -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY mrcnn_jax mrcnn_jax
RUN /opt/mrcnn/bin/pip install --no-cache-dir --no-compile ".[serve]"

FROM python:3.12-slim
COPY --from=build /opt/mrcnn /opt/mrcnn
RUN useradd --create-home --uid 10001 mrcnn \
    && install --directory --owner mrcnn --group mrcnn /home/mrcnn/.cache/mrcnn_jax
USER mrcnn
WORKDIR /home/mrcnn
ENV PATH=/opt/mrcnn/bin:$PATH JAX_PLATFORMS=cpu PYTHONDONTWRITEBYTECODE=1
# compiled programs, so that a second start takes seconds
VOLUME /home/mrcnn/.cache/mrcnn_jax
EXPOSE 8000
# the first start compiles for a minute or more
HEALTHCHECK --interval=30s --timeout=5s --start-period=5m --retries=3 \
    CMD ["python", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["mrcnn", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["/model"]
