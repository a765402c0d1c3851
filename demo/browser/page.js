"use strict";
// The page: an image, made small or its middle, through the sampler; the input, samples and their mean as canvases.

const element = (id) => document.getElementById(id);
const say = (text) => (element("status").textContent = text);
let sampler = null;
let picture = null; // ImageBitmap that the visitor chose

// data: [3, height, width] in [0, 1].
function toCanvas(data, height, width) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const pixels = new ImageData(width, height);
  const area = height * width;
  for (let i = 0; i < area; i++) {
    for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = Math.round(255 * data[c * area + i]);
    pixels.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

function show(canvas, caption) {
  const figure = document.createElement("figure");
  const text = document.createElement("figcaption");
  text.textContent = caption;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", caption);
  figure.append(canvas, text);
  element("results").append(figure);
}

// y, Float32Array [3, height, width] in [0, 1]: the part of the picture that the visitor asked for.
function readInput() {
  const { height, width } = sampler;
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // behind what is transparent
  context.fillRect(0, 0, width, height);
  const fit = Math.min(picture.width / width, picture.height / height);
  const scale = element("part").value === "middle" ? 1 : fit; // pixels of the picture for one of y
  const [w, h] = [width * scale, height * scale];
  const [left, top] = [Math.floor((picture.width - w) / 2), Math.floor((picture.height - h) / 2)];
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, left, top, w, h, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  const area = height * width;
  return Float32Array.from({ length: 3 * area }, (_, i) => data[4 * (i % area) + Math.floor(i / area)] / 255);
}

async function choose(file) {
  element("draw").disabled = true;
  picture = null;
  try {
    const chosen = await createImageBitmap(file);
    const { height, width } = sampler;
    if (chosen.width < width || chosen.height < height) {
      throw new Error(`it must have at least ${width}x${height} pixels, and has ${chosen.width}x${chosen.height}`);
    }
    picture = chosen;
    element("draw").disabled = false;
    say(`${chosen.width}x${chosen.height} pixels, of which the model takes ${width}x${height}. Draw when you like.`);
  } catch (error) {
    say(`Cannot use this file: ${error.message}`);
  }
}

async function draw() {
  const count = Math.min(8, Math.max(1, Math.trunc(element("count").valueAsNumber) || 1));
  const seed = Math.max(0, Math.trunc(element("seed").valueAsNumber) || 0);
  element("draw").disabled = true;
  element("results").replaceChildren();
  try {
    const y = readInput();
    const small = toCanvas(y, sampler.height, sampler.width);
    small.className = "pixels";
    show(small, `input, ${sampler.width}x${sampler.height}`);
    const start = performance.now();
    let mean = null;
    let size = null;
    for (let j = 0; j < count; j++) {
      say(`Drawing sample ${j + 1} of ${count} ...`);
      await new Promise((resolve) => setTimeout(resolve, 0)); // lets the page show it
      const noise = sampler.drawNoise([seed + j]);
      const out = await sampler.sample(y, element("temperature").valueAsNumber, noise, 1);
      show(toCanvas(out.data, out.height, out.width), `seed ${seed + j}`);
      size = [out.height, out.width];
      mean = mean || new Float32Array(out.data.length);
      out.data.forEach((value, i) => (mean[i] += value / count));
    }
    if (count > 1) show(toCanvas(mean, ...size), `mean of ${count} samples`);
    say(`${count} sample${count > 1 ? "s" : ""} in ${((performance.now() - start) / 1000).toFixed(1)} s`);
  } catch (error) {
    say(`Failed: ${error.message}`);
  }
  element("draw").disabled = picture === null;
}

element("temperature").addEventListener("input", () => (element("shown").value = element("temperature").value));
const first = (files) => sampler && files.length && choose(files[0]);
element("file").addEventListener("change", (event) => first(event.target.files));
document.addEventListener("paste", (event) => first(event.clipboardData.files));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  first(event.dataTransfer.files);
});
element("controls").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!element("draw").disabled) draw();
});

element("file").disabled = true;
Sampler.load("model.onnx").then(
  (loaded) => {
    sampler = loaded;
    element("file").disabled = false;
    say(`Ready. Choose an image of at least ${sampler.width}x${sampler.height} pixels.`);
  },
  (error) => say(`model.onnx could not be loaded: ${error.message}`),
);
