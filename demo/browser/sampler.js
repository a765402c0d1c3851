"use strict";
// The exported sampler (`hvae-sr export`) in onnxruntime-web: y, temperature and noise in, samples out.

class Sampler {
  // Reads the ONNX file at `address`; the shapes of y and of each group's noise stand in its inputs.
  static async load(address) {
    ort.env.wasm.wasmPaths = new URL("ort/", document.baseURI).href;
    ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send
    return new Sampler(await ort.InferenceSession.create(address, { executionProviders: ["wasm"] }));
  }

  constructor(session) {
    this.session = session;
    const shapes = Object.fromEntries(session.inputMetadata.map((input) => [input.name, input.shape]));
    [this.height, this.width] = shapes.image.slice(2); // of y
    this.noiseShapes = []; // [C, h, w] of each group
    for (let group = 0; shapes[`noise_${group}`]; group++) this.noiseShapes.push(shapes[`noise_${group}`].slice(1));
  }

  // Standard normals of every group for samples of the given seeds.
  drawNoise(seeds) {
    const sizes = this.noiseShapes.map((shape) => shape.reduce((a, b) => a * b));
    const noise = sizes.map((size) => new Float32Array(size * seeds.length));
    seeds.forEach((seed, row) => {
      const uniform = uniforms(seed);
      noise.forEach((draws, group) => {
        for (let i = row * sizes[group]; i < (row + 1) * sizes[group]; i += 2) {
          const radius = Math.sqrt(-2 * Math.log(uniform()));
          const angle = 2 * Math.PI * uniform();
          draws[i] = radius * Math.cos(angle);
          if (i + 1 < (row + 1) * sizes[group]) draws[i + 1] = radius * Math.sin(angle);
        }
      });
    });
    return noise;
  }

  // image: Float32Array [3, h, w] in [0, 1]; noise: of `count` samples, one Float32Array for each group.
  // Returns {data: Float32Array [count, 3, H, W] in [0, 1], height, width}.
  async sample(image, temperature, noise, count) {
    const feeds = {
      image: new ort.Tensor("float32", image, [1, 3, this.height, this.width]),
      temperature: new ort.Tensor("float32", Float32Array.of(temperature), []),
    };
    noise.forEach((draws, group) => {
      feeds[`noise_${group}`] = new ort.Tensor("float32", draws, [count, ...this.noiseShapes[group]]);
    });
    const { images } = await this.session.run(feeds);
    return { data: images.data, height: images.dims[2], width: images.dims[3] };
  }
}

// Uniforms in (0, 1) from a 32-bit seed (mulberry32). Other draws than the Python package's for the same seed.
function uniforms(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (((t ^ (t >>> 14)) >>> 0) + 0.5) / 4294967296;
  };
}
