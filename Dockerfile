# A gpu-node. On a GPU:   docker build -t ringlet . && docker run --gpus all ringlet --model …
# On the processor alone: docker build -t ringlet --build-arg DEVICE=cpu .
ARG DEVICE=cuda
ARG NODE=node:22-bookworm-slim

# ONNX Runtime's CUDA 13 provider needs the runtime's cuBLAS and cuRAND; the driver comes from the host.
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04 AS base-cuda
FROM debian:bookworm-slim AS base-cpu

FROM ${NODE} AS node
WORKDIR /app
COPY package.json package-lock.json .npmrc ./
# tsx and esbuild, which make JavaScript of the TypeScript, are dependencies of the node itself.
RUN npm ci --omit=dev
COPY gpu-node gpu-node
COPY shared shared
RUN npm run build:node

FROM node AS provider-cuda
# Exit status 3 says that this machine lacks driver and libraries, as a builder does.
RUN npm run setup:cuda -- --dir /app/.ort || [ $? -eq 3 ]

FROM node AS provider-cpu
RUN mkdir /app/.ort

FROM provider-${DEVICE} AS provider

FROM base-${DEVICE}
COPY --from=node /usr/local/bin/node /usr/local/bin/node
COPY --from=provider /app /app
WORKDIR /app
RUN useradd --system --create-home --uid 10001 ringlet && mkdir /data && chown ringlet /data
USER ringlet
VOLUME /data
EXPOSE 8081
HEALTHCHECK --interval=10s --timeout=3s --start-period=10m \
  CMD ["node", "-e", "fetch('http://127.0.0.1:8081/health').then((r) => process.exit(r.ok ? 0 : 1), () => process.exit(1))"]
# `auto`: CUDA where it works. The state directory holds caches; keys come from the environment.
ENTRYPOINT ["node", "--max-semi-space-size=2", "dist/node/main.js", "--host", "0.0.0.0", "--port", "8081", "--state", "/data", "--device", "auto"]
