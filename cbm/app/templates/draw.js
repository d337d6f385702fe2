// A box that is drawn on the picture selects that part of it.
let from = null, frame = null, picture = null;
const place = (event) => {
  const edge = picture.getBoundingClientRect();
  const share = (value) => Math.min(Math.max(value, 0), 1);
  return [share((event.clientX - edge.left) / edge.width), share((event.clientY - edge.top) / edge.height)];
};
const box = (to) => [
  Math.min(from[0], to[0]), Math.min(from[1], to[1]), Math.max(from[0], to[0]), Math.max(from[1], to[1]),
];
element.addEventListener('dragstart', (event) => event.preventDefault());
element.addEventListener('pointerdown', (event) => {
  picture = event.target.closest('.whole img');
  if (!picture || event.button !== 0) return;
  from = place(event);
  frame = document.createElement('span');
  frame.className = 'drawn';
  picture.parentElement.append(frame);
  picture.setPointerCapture(event.pointerId);
});
element.addEventListener('pointermove', (event) => {
  if (!from) return;
  const [left, top, right, bottom] = box(place(event)), size = picture.getBoundingClientRect();
  Object.assign(frame.style, {
    left: left * size.width + 'px', top: top * size.height + 'px',
    width: (right - left) * size.width + 'px', height: (bottom - top) * size.height + 'px',
  });
});
const end = (event) => {
  if (!from) return;
  const drawn = box(place(event));
  frame.remove();
  from = frame = null;
  const large = Math.max(drawn[2] - drawn[0], drawn[3] - drawn[1]) > 0.02;
  if (event.type === 'pointerup' && large) trigger('select', {box: drawn.map((each) => each.toFixed(4)).join(',')});
};
element.addEventListener('pointerup', end);
element.addEventListener('pointercancel', end);
