// The frame on a large photo: dragged, resized at its corner, or moved by keys; the event `frame` has two corners.
let area = null, photo = null, drag = null;
const within = (value, low, high) => Math.min(Math.max(value, low), high);

const apply = () => {
  const [width, height] = photo.size, [left, top, right, bottom] = photo.box, style = area.querySelector('.box').style;
  style.left = 100 * left / width + '%';
  style.top = 100 * top / height + '%';
  style.width = 100 * (right - left) / width + '%';
  style.height = 100 * (bottom - top) / height + '%';
  element.querySelector('.hint span').textContent = `${right - left} x ${bottom - top} pixels.`;
};
const send = () => {
  const [width, height] = photo.size, [left, top, right, bottom] = photo.box;
  trigger('frame', {points: [[left / width, top / height], [right / width, bottom / height]]});
};
const move = (left, top) => {
  const [x, y, right, bottom] = photo.box, width = right - x, height = bottom - y;
  left = Math.round(within(left, 0, photo.size[0] - width));
  top = Math.round(within(top, 0, photo.size[1] - height));
  photo.box = [left, top, left + width, top + height];
  apply();
};
const resize = (width, height) => {
  const [left, top] = photo.box;
  width = within(Math.round(width), 16, photo.size[0] - left);
  height = within(Math.round(height), 16, photo.size[1] - top);
  const factor = Math.min(1, Math.sqrt(photo.limit / (width * height)));  // never more than the model takes
  photo.box = [left, top, left + Math.floor(width * factor), top + Math.floor(height * factor)];
  apply();
};
const adopt = () => {
  const found = element.querySelector('.framing');
  if (found === area && (!area || area.seen === area.dataset.frame)) return;
  area = found;
  if (!area) return;
  area.seen = area.dataset.frame;
  photo = JSON.parse(area.dataset.frame);
  apply();
};
const place = event => {
  const box = area.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width * photo.size[0], (event.clientY - box.top) / box.height * photo.size[1]];
};
element.addEventListener('pointerdown', event => {
  if (!area || !area.contains(event.target)) return;
  event.preventDefault();
  area.setPointerCapture(event.pointerId);
  area.querySelector('.box').focus({preventScroll: true});
  const [x, y] = place(event), [left, top, right, bottom] = photo.box;
  if (event.target.matches('b')) drag = [x - right, y - bottom, true];
  else {
    if (!event.target.matches('.box')) move(x - (right - left) / 2, y - (bottom - top) / 2);
    drag = [x - photo.box[0], y - photo.box[1], false];
  }
});
element.addEventListener('pointermove', event => {
  if (!drag || !area) return;
  const [x, y] = place(event);
  if (drag[2]) resize(x - drag[0] - photo.box[0], y - drag[1] - photo.box[1]);
  else move(x - drag[0], y - drag[1]);
});
for (const name of ['pointerup', 'pointercancel']) element.addEventListener(name, () => {
  if (drag) send();
  drag = null;
});
element.addEventListener('keydown', event => {
  if (!area || !event.target.matches('.box')) return;
  const [left, top, right, bottom] = photo.box, step = Math.max(photo.size[0] / 50, 1);
  const moves = {ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step]};
  const factor = {'+': 1.1, '-': 1 / 1.1}[event.key];
  if (moves[event.key]) move(left + moves[event.key][0], top + moves[event.key][1]);
  else if (factor) resize((right - left) * factor, (bottom - top) * factor);
  else return;
  event.preventDefault();
  send();
});
new MutationObserver(adopt).observe(element, {childList: true, subtree: true, attributes: true, attributeFilter: ['data-frame']});
adopt();
