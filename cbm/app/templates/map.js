// The map: points on a canvas, drawn as pixels; the pictures themselves where few are in view.
const MOST = 5000, FEW = 60, HUES = 12;
const read = (text, Kind) => new Kind(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
const hsl = (hue, light) => {  // to the bytes of a pixel, ABGR
  const part = (n) => {
    const k = (n + hue / 30) % 12, a = 0.65 * Math.min(light, 1 - light);
    return Math.round(255 * (light - a * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return (255 << 24) | (part(4) << 16) | (part(8) << 8) | part(0);
};
const css = (pixel) => `rgb(${pixel & 255},${(pixel >> 8) & 255},${(pixel >> 16) & 255})`;
const palette = (scale) => {
  const light = document.body.classList.contains('dark') ? 0.62 : 0.45;
  if (scale === 'two') return [hsl(212, light), hsl(4, light)];
  if (scale === 'shades') return Array.from({length: 32}, (_, i) => hsl(220 - 6.5 * i, light));
  return [...Array.from({length: HUES}, (_, i) => hsl(30 * ((i * 5) % HUES), i % 2 ? light : light * 0.8)), hsl(0, 0.5)];
};
let map = null;

const start = () => {
  const root = element.querySelector('.map');
  if (!root) { map = null; return; }
  const points = read(root.dataset.points, Int16Array), colours = read(root.dataset.colours, Uint8Array);
  const labels = root.dataset.labels ? read(root.dataset.labels, Uint16Array) : null;
  const classes = JSON.parse(root.dataset.classes), pixels = palette(root.dataset.scale);
  const canvas = root.querySelector('canvas'), told = root.querySelector('.said'), context = canvas.getContext('2d');
  for (const key of root.querySelectorAll('.key')) key.style.background = css(pixels[key.dataset.colour % pixels.length]);
  const view = map && map.count === colours.length ? map.view : {x: 0, y: 0, zoom: 0.95};
  const count = colours.length, pictures = new Map(), least = count < 3000 ? 4 : count < 20000 ? 2 : 1;
  let from = null, lasso = null, moved = false, asked = '', frame = 0, image = null;

  const size = () => {
    const width = Math.max(200, Math.round(canvas.clientWidth)), height = Math.max(200, Math.round(canvas.clientHeight));
    if (canvas.width !== width || canvas.height !== height || !image) {
      canvas.width = width; canvas.height = height;
      image = context.createImageData(width, height);
    }
  };
  const factor = () => view.zoom * Math.min(canvas.width, canvas.height) / 2 / 32767;
  const at = (row) => [
    canvas.width / 2 + (points[2 * row] - view.x) * factor(), canvas.height / 2 - (points[2 * row + 1] - view.y) * factor(),
  ];
  const visible = () => {
    const found = [], f = factor(), w = canvas.width / 2 / f, h = canvas.height / 2 / f;
    for (let row = 0; row < count; row++) {
      if (Math.abs(points[2 * row] - view.x) < w && Math.abs(points[2 * row + 1] - view.y) < h) found.push(row);
    }
    return found;
  };
  const paint = () => {
    frame = 0;
    const begun = performance.now();
    size();
    const {width, height} = canvas, buffer = new Uint32Array(image.data.buffer), f = factor();
    const left = width / 2 - view.x * f, top = height / 2 + view.y * f, dot = Math.min(8, least + Math.round(Math.sqrt(view.zoom)));
    buffer.fill(0);
    for (let row = 0; row < count; row++) {
      const x = (left + points[2 * row] * f) | 0, y = (top - points[2 * row + 1] * f) | 0;
      if (x < 0 || y < 0 || x + dot > width || y + dot > height) continue;
      const pixel = pixels[colours[row]];
      for (let line = y; line < y + dot; line++) buffer.fill(pixel, line * width + x, line * width + x + dot);
    }
    context.putImageData(image, 0, 0);
    const seen = visible();
    if (seen.length <= FEW) for (const row of seen) {
      const picture = pictures.get(row), [x, y] = at(row);
      if (!picture) continue;
      context.drawImage(picture, x - 24, y - 24, 48, 48);
      context.strokeStyle = css(pixels[colours[row]]);
      context.lineWidth = 2;
      context.strokeRect(x - 24, y - 24, 48, 48);
    }
    if (lasso) {
      context.beginPath();
      lasso.forEach(([x, y], i) => i ? context.lineTo(x, y) : context.moveTo(x, y));
      context.closePath();
      context.strokeStyle = getComputedStyle(canvas).color;
      context.lineWidth = 1.5;
      context.stroke();
    }
    map.milliseconds = performance.now() - begun;
    return seen;
  };
  const later = () => { if (!frame) frame = requestAnimationFrame(paint); };
  const settle = () => {  // when nothing moves any more, few pictures are asked for
    const seen = paint();
    told.textContent = `${seen.length.toLocaleString('en')} of ${count.toLocaleString('en')} pictures in view`;
    const rows = seen.length <= FEW ? seen.filter((row) => !pictures.has(row)).join(',') : '';
    if (rows && rows !== asked) { asked = rows; trigger('select', {rows}); }
  };
  let timer = 0;
  const rest = () => { later(); clearTimeout(timer); timer = setTimeout(settle, 250); };
  const zoom = (by, x = canvas.width / 2, y = canvas.height / 2) => {
    const next = Math.min(Math.max(view.zoom * by, 0.5), 2000), f = factor();
    const px = view.x + (x - canvas.width / 2) / f, py = view.y - (y - canvas.height / 2) / f;
    view.zoom = next;
    const g = factor();
    view.x = px - (x - canvas.width / 2) / g; view.y = py + (y - canvas.height / 2) / g;
    rest();
  };
  const pan = (dx, dy) => { view.x -= dx / factor(); view.y += dy / factor(); rest(); };
  const pick = (rows) => {
    if (!rows.length) { told.textContent = 'no picture is chosen'; return; }
    if (rows.length > MOST) { told.textContent = `${rows.length.toLocaleString('en')} pictures: at most ${MOST.toLocaleString('en')} can be chosen; zoom in`; return; }
    const spans = [];
    for (const row of rows) {
      const last = spans[spans.length - 1];
      if (last && row === last[1] + 1) last[1] = row; else spans.push([row, row]);
    }
    trigger('select', {key: 'picked=' + spans.map(([a, b]) => a === b ? a : `${a}-${b}`).join('.')});
  };
  const inside = (x, y) => {
    let within = false;
    for (let i = 0, j = lasso.length - 1; i < lasso.length; j = i++) {
      const [ax, ay] = lasso[i], [bx, by] = lasso[j];
      if ((ay > y) !== (by > y) && x < (bx - ax) * (y - ay) / (by - ay) + ax) within = !within;
    }
    return within;
  };
  const nearest = (x, y) => {
    let best = -1, least = 14 * 14;
    for (const row of visible()) {
      const [a, b] = at(row), away = (a - x) ** 2 + (b - y) ** 2;
      if (away < least) { least = away; best = row; }
    }
    return best;
  };
  const place = (event) => { const edge = canvas.getBoundingClientRect(); return [event.clientX - edge.left, event.clientY - edge.top]; };

  canvas.addEventListener('wheel', (event) => { event.preventDefault(); zoom(Math.exp(-event.deltaY / 400), ...place(event)); }, {passive: false});
  canvas.addEventListener('pointerdown', (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    from = place(event); moved = false;
    lasso = event.shiftKey ? [from] : null;
  });
  canvas.addEventListener('pointermove', (event) => {
    const here = place(event);
    if (!from) {
      if (count > 200000 || frame) return;
      const row = nearest(...here);
      canvas.title = row < 0 || !labels ? '' : `${classes[labels[2 * row]]}` + (labels[2 * row] === labels[2 * row + 1] ? '' : `, said ${classes[labels[2 * row + 1]]}`);
      return;
    }
    if (Math.hypot(here[0] - from[0], here[1] - from[1]) > 3) moved = true;
    if (lasso) { lasso.push(here); later(); } else if (moved) { pan(here[0] - from[0], here[1] - from[1]); from = here; }
  });
  canvas.addEventListener('pointerup', (event) => {
    if (lasso && lasso.length > 2) {
      const rows = visible().filter((row) => inside(...at(row)));
      lasso = null; later(); pick(rows);
    } else if (from && !moved) {
      const row = nearest(...place(event));
      if (row >= 0) trigger('select', {key: String(row)});
    }
    from = lasso = null;
  });
  canvas.addEventListener('pointercancel', () => { from = lasso = null; later(); });
  canvas.addEventListener('keydown', (event) => {
    const step = 60, ways = {ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step]};
    if (ways[event.key]) pan(...ways[event.key]);
    else if (event.key === '+' || event.key === '=') zoom(1.4);
    else if (event.key === '-') zoom(1 / 1.4);
    else if (event.key === 'Enter') pick(visible());
    else return;
    event.preventDefault();
  });
  root.addEventListener('click', (event) => {
    const what = event.target.closest('[data-do]')?.dataset.do;
    if (what === 'in') zoom(1.6);
    if (what === 'out') zoom(1 / 1.6);
    if (what === 'all') { Object.assign(view, {x: 0, y: 0, zoom: 0.95}); rest(); }
    if (what === 'pick') pick(visible());
  });
  const shown = () => {
    for (const tile of document.querySelectorAll('#map-pictures .tile')) {
      const picture = tile.querySelector('img');
      if (picture) { pictures.set(Number(tile.dataset.key), picture.cloneNode()); }
    }
    setTimeout(later, 60);
  };
  map = {view, count, shown, rest, milliseconds: 0};
  window.cbmMap = map;  // for measurements
  new ResizeObserver(() => { if (canvas.isConnected) rest(); }).observe(canvas);
  settle();
};
watch('value', () => setTimeout(start, 0));
document.addEventListener('cbm-map-pictures', () => map && map.shown());
