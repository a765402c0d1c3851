"use strict";
// The page: the middle of an image, at its own pixels, through the sampler; samples as canvases.

const element = (id) => document.getElementById(id);
const say = (text) => (element("status").textContent = text);
let sampler = null;
let y = null; // Float32Array [3, h, w] in [0, 1]

function toCanvas(data, offset, height, width) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const pixels = new ImageData(width, height);
  const area = height * width;
  for (let i = 0; i < area; i++) {
    for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = Math.round(255 * data[offset + c * area + i]);
    pixels.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

function show(canvas, caption) {
  const figure = document.createElement("figure");
  const text = document.createElement("figcaption");
  text.textContent = caption;
  figure.append(canvas, text);
  element("results").append(figure);
}

async function readImage(file) {
  const bitmap = await createImageBitmap(file);
  const { height, width } = sampler;
  if (bitmap.width < width || bitmap.height < height) {
    throw new Error(`the image must be at least ${width}x${height}, it is ${bitmap.width}x${bitmap.height}`);
  }
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // behind what is transparent
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, -Math.floor((bitmap.width - width) / 2), -Math.floor((bitmap.height - height) / 2));
  const { data } = context.getImageData(0, 0, width, height);
  const area = height * width;
  return Float32Array.from({ length: 3 * area }, (_, i) => data[4 * (i % area) + Math.floor(i / area)] / 255);
}

async function draw() {
  const count = Math.min(8, Math.max(1, Math.trunc(element("count").valueAsNumber) || 1));
  const seed = Math.max(0, Math.trunc(element("seed").valueAsNumber) || 0);
  const seeds = Array.from({ length: count }, (_, j) => seed + j);
  element("draw").disabled = true;
  element("results").replaceChildren();
  say("Drawing...");
  try {
    const start = performance.now();
    for (const each of seeds) {
      const out = await sampler.sample(y, element("temperature").valueAsNumber, sampler.drawNoise([each]), 1);
      show(toCanvas(out.data, 0, out.height, out.width), `seed ${each}`);
    }
    say(`${count} samples in ${((performance.now() - start) / 1000).toFixed(1)} s`);
  } catch (error) {
    say(`Failed: ${error.message}`);
  }
  element("draw").disabled = false;
}

element("temperature").addEventListener("input", () => (element("shown").value = element("temperature").value));
element("file").addEventListener("change", async (event) => {
  element("draw").disabled = true;
  try {
    y = await readImage(event.target.files[0]);
    element("draw").disabled = false;
    say(`The middle ${sampler.width}x${sampler.height} pixels are upscaled.`);
  } catch (error) {
    say(`Cannot use this file: ${error.message}`);
  }
});
element("controls").addEventListener("submit", (event) => {
  event.preventDefault();
  draw();
});

Sampler.load("model.onnx").then(
  (loaded) => {
    sampler = loaded;
    say(`Ready. Choose an image of at least ${sampler.width}x${sampler.height} pixels.`);
  },
  (error) => say(`model.onnx could not be loaded: ${error.message}`),
);
