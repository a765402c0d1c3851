// The comparison: its line, zoom and place stay when another sample is shown.
// x and y are the picture's corner, in widths and heights of the view.
const view = {line: 50, zoom: 1, x: 0, y: 0, shape: ''};
let area = null, timer = null;
const within = (value, low, high) => Math.min(Math.max(value, low), high);
const read = () => JSON.parse(area.dataset.compare);

const apply = () => {
  view.zoom = within(view.zoom, Math.min(1, fullSize()), Math.max(32, fullSize()));
  for (const axis of ['x', 'y'])
    view[axis] = view.zoom > 1 ? within(view[axis], 1 - view.zoom, 0) : (1 - view.zoom) / 2;
  for (const name of ['zoom', 'x', 'y']) area.style.setProperty('--' + name, view[name]);
  area.style.setProperty('--line', view.line + '%');
  area.querySelector('input').value = view.line;
  area.classList.toggle('large', area.clientWidth * view.zoom > 2.5 * read().size[0]);
  area.classList.toggle('zoomed', view.zoom > 1);
};
const fullSize = () => read().size[0] / area.clientWidth / devicePixelRatio;
const zoom = (factor, x = 0.5, y = 0.5) => {  // the point (x, y) of the view stays where it is
  const before = view.zoom;
  view.zoom = within(before * factor, Math.min(1, fullSize()), Math.max(32, fullSize()));
  view.x = x - (x - view.x) * view.zoom / before;
  view.y = y - (y - view.y) * view.zoom / before;
  apply();
};
const show = (name, source) => {
  const image = area.querySelector('.after img');
  image.src = source;
  image.alt = area.querySelector('.right').textContent = name;
};
const stopFlicker = () => {
  clearInterval(timer);
  timer = null;
  element.querySelector('[data-tool=flicker]')?.setAttribute('aria-pressed', 'false');
};
const flicker = () => {
  const image = area.querySelector('.after img'), now = {name: image.alt, source: image.getAttribute('src')};
  if (timer) { stopFlicker(); show(area.shown.name, area.shown.source); return; }
  area.shown = now;
  const samples = read().samples, pictures = samples.map(one => Object.assign(new Image(), {src: one.source}));
  let number = 0;
  const next = () => {
    if (!pictures[number % samples.length].complete) return;  // until it is there
    show(samples[number % samples.length].name, samples[number % samples.length].source);
    number += 1;
  };
  element.querySelector('[data-tool=flicker]').setAttribute('aria-pressed', 'true');
  timer = setInterval(next, 600);
  next();
};
const fullScreen = () => {
  if (document.fullscreenElement) document.exitFullscreen();
  else if (element.requestFullscreen) element.requestFullscreen();
  else element.classList.toggle('full');  // iPhones
};
const tools = {
  in: () => zoom(1.5), out: () => zoom(1 / 1.5), fit: () => zoom(1 / view.zoom),
  'full-size': () => zoom(fullSize() / view.zoom), flicker: flicker, screen: fullScreen,
};
const adopt = () => {
  const found = element.querySelector('.compare');
  // The element may be another, or the same with other attributes.
  if (found === area && (!area || (area.seen === area.dataset.compare && area.style.getPropertyValue('--line')))) return;
  stopFlicker();
  area = found;
  if (!area) return;
  area.seen = area.dataset.compare;
  if (view.shape !== String(read().size)) Object.assign(view, {zoom: 1, shape: String(read().size)});
  apply();
};
const place = event => {
  const box = area.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
};
const pointers = new Map();
let drag = null;
element.addEventListener('click', event => {
  const tool = event.target.closest('[data-tool]');
  if (tool && area) tools[tool.dataset.tool]();
});
element.addEventListener('input', event => {
  if (event.target.type === 'range') { view.line = Number(event.target.value); apply(); }
});
element.addEventListener('pointerdown', event => {
  if (!area || !area.contains(event.target)) return;
  area.setPointerCapture(event.pointerId);
  const [x, y] = place(event), near = Math.abs(x - view.line / 100) * area.clientWidth < 24;
  pointers.set(event.pointerId, [x, y]);
  drag = view.zoom > 1 && !near ? 'picture' : 'line';
  if (drag === 'line' && pointers.size === 1) { view.line = 100 * within(x, 0, 1); apply(); }
  event.preventDefault();
  area.querySelector('input').focus({preventScroll: true});
});
element.addEventListener('pointermove', event => {
  const before = pointers.get(event.pointerId);
  if (!before || !area) return;
  const now = place(event);
  if (pointers.size === 2) {
    const [other] = [...pointers].filter(([id]) => id !== event.pointerId).map(([, point]) => point);
    const far = point => Math.hypot((point[0] - other[0]) * area.clientWidth, (point[1] - other[1]) * area.clientHeight);
    zoom(far(now) / Math.max(far(before), 1), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
  } else if (drag === 'line') view.line = 100 * within(now[0], 0, 1);
  else { view.x += now[0] - before[0]; view.y += now[1] - before[1]; }
  pointers.set(event.pointerId, now);
  apply();
});
for (const name of ['pointerup', 'pointercancel'])
  element.addEventListener(name, event => pointers.delete(event.pointerId));
element.addEventListener('wheel', event => {
  if (!area || !area.contains(event.target)) return;
  event.preventDefault();
  zoom(Math.exp(-event.deltaY / 400), ...place(event));
}, {passive: false});
element.addEventListener('dblclick', event => {
  if (area && area.contains(event.target)) zoom(view.zoom > 1 ? 1 / view.zoom : Math.max(2, fullSize()), ...place(event));
});
new MutationObserver(adopt).observe(element, {childList: true, subtree: true, attributes: true});
new ResizeObserver(() => { if (area && area.clientWidth) apply(); }).observe(element);
adopt();
