# docker build --tag gapssg .                              without a GPU
# docker build --tag gapssg:cuda --build-arg TORCH=cu130 . with NVIDIA GPUs: docker run --gpus all ...

ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
# The index of PyTorch whose builds of torch are used: cpu, cu126, cu130 ...
ARG TORCH=cpu
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY gapssg gapssg
RUN python -m venv /opt/gapssg \
    && /opt/gapssg/bin/pip install --no-cache-dir --extra-index-url "https://download.pytorch.org/whl/${TORCH}" \
        '.[card,export,tensorboard,timm]'

FROM python:${PYTHON}-slim
COPY --from=build /opt/gapssg /opt/gapssg
# With `docker run --user` the user has no name, which torch asks for.
ENV PATH=/opt/gapssg/bin:$PATH USER=gapssg
RUN useradd --create-home --uid 1000 gapssg
USER 1000
WORKDIR /home/gapssg
ENTRYPOINT ["gapssg"]
CMD ["--help"]
