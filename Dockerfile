# An image that answers over HTTP with the labels of texts: shoal serve /model.
#   docker build --tag shoal .
#   docker run --rm -p 127.0.0.1:8000:8000 --volume "$PWD/runs/products:/model:ro" shoal
# TORCH_INDEX: an index of builds of torch for the CPU, as its page "Get started locally" names it;
# without one the image holds CUDA, several gigabytes.
FROM python:3.12-slim AS build
ARG TORCH_INDEX=
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python -m venv /opt/shoal \
 && /opt/shoal/bin/pip install --no-cache-dir ${TORCH_INDEX:+--index-url $TORCH_INDEX} "torch>=2.11" \
 && /opt/shoal/bin/pip install --no-cache-dir '.[serve,ann]'

FROM python:3.12-slim
COPY --from=build /opt/shoal /opt/shoal
RUN useradd --create-home shoal
USER shoal
ENV OMP_WAIT_POLICY=PASSIVE PYTHONUNBUFFERED=1
EXPOSE 8000
# there is no password: publish the port to this machine only, or behind a proxy (docs/how-to/serve.md)
ENTRYPOINT ["/opt/shoal/bin/shoal", "serve"]
CMD ["/model", "--host", "0.0.0.0"]
