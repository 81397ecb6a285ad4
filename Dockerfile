# The device part in a container: numpy and onnxruntime, no torch.
#
#   docker build -t emqdeploy-device .
#   docker run --rm -v "$PWD/bundle:/device/bundle:ro" emqdeploy-device eval bundle
FROM python:3.10-slim AS build
WORKDIR /source
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY emqdeploy emqdeploy
RUN pip wheel --no-cache-dir --wheel-dir /wheels ".[runtime]"

FROM python:3.10-slim
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --no-index --find-links /wheels "emqdeploy[runtime]" && rm -rf /wheels \
    && useradd --create-home device && mkdir /device && chown device /device
USER device
WORKDIR /device
ENTRYPOINT ["emqdeploy"]
CMD ["doctor"]
