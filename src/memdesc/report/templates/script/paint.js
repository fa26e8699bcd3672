// Colours, and the picture on the canvas.

let paints = [];
let inks = [];
let theme = {};

function readColours() {
  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.append(probe);
  const style = getComputedStyle(probe);
  const channels = (name) => {
    const text = style.getPropertyValue(name).trim();
    return [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
  };
  paints = [];
  inks = [];
  for (let i = 0; i < data.types.length; i++) {
    probe.className = `t${i}`;
    paints.push(channels("--c"));
    inks.push(channels("--ink"));
  }
  probe.className = "";
  theme = { paper: channels("--paper"), wash: channels("--wash") };
  theme.text = style.getPropertyValue("--ink-2").trim();
  theme.outline = style.getPropertyValue("--outline").trim();
  probe.remove();
}

const word = ([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
const mix = (a, b, part) => a.map((v, i) => Math.round(v + (b[i] - v) * part));

// How much of each cell is of the chosen type, 0 to 1.
function shares(at, type) {
  const result = new Float32Array(at.size);
  for (let i = 0; i < data.cells; i++) {
    const [start, end] = framesOf(i);
    let left = end - start;
    let frames = 0;
    for (let k = firstOther[i]; k < firstOther[i + 1]; k++) {
      if (fine.type[k] === type) frames += fine.frames[k];
      left -= fine.frames[k];
    }
    if (fine.top[i] === type) frames += left;
    if (frames) result[i >> at.shift] += frames / 2 ** (data.fine + at.shift);
  }
  return result;
}

// All cells of a level as an image of one pixel each.
function paint(at) {
  if (at.painted) return at.painted;
  const image = new ImageData(view.columns * at.side, view.rows * at.side);
  const pixels = new Uint32Array(image.data.buffer);
  const solid = paints.map(word);
  const hatch = inks.map(word);
  const dim = paints.map((paint) => word(mix(theme.paper, paint, 0.1)));
  const empty = word(theme.wash);
  const part = only && "type" in only ? shares(at, only.type) : null;
  const tones = part && Array.from({ length: 65 }, (_, i) =>
    word(mix(theme.wash, paints[only.type], 0.45 + 0.55 * (i / 64))));
  for (let i = 0; i < at.size; i++) {
    const [x, y] = gridOf(at, i);
    const type = at.top[i];
    let tone = ((x + y) & 3) < 2 ? hatch[type] : solid[type];
    if (part) tone = part[i] ? tones[Math.ceil(64 * Math.min(1, part[i]))] : empty;
    else if (only && zoneAt(rangeOf(at, i)[0]) !== only.zone) tone = dim[type];
    pixels[y * image.width + x] = tone;
  }
  at.painted = new OffscreenCanvas(image.width, image.height);
  at.painted.getContext("2d").putImageData(image, 0, 0);
  return at.painted;
}

function draw() {
  const at = level();
  const image = paint(at);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = false;
  const edge = (v, origin) => Math.round(v * view.zoom + origin);
  const size = tileSide * view.cell;
  for (let row = 0; row < view.rows; row++) {
    for (let column = 0; column < view.columns; column++) {
      const left = edge(column * pitch(), view.x + view.gutter);
      const top = edge(row * pitch(), view.y);
      const right = edge(column * pitch() + size, view.x + view.gutter);
      const bottom = edge(row * pitch() + size, view.y);
      if (right < 0 || bottom < 0 || left > canvas.width || top > canvas.height) continue;
      context.drawImage(image, column * at.side, row * at.side, at.side, at.side,
        left, top, right - left, bottom - top);
    }
  }
  drawBorders();
  drawGutter();
  if (cursor) drawCursor();
}

// Lines where one zone ends and another begins.
function drawBorders() {
  const at = levels[0];
  const ratio = window.devicePixelRatio || 1;
  context.strokeStyle = theme.outline;
  context.lineWidth = Math.max(1, Math.round(1.25 * ratio));
  context.beginPath();
  for (const [x, y, down] of borders(at)) {
    const index = cellAt(at, x, y);
    const [left, top, side] = boxOf(at, index);
    context.moveTo(left + (down ? 0 : side), top + (down ? side : 0));
    context.lineTo(left + side, top + side);
  }
  context.stroke();
}

function borders(at) {
  if (at.borders && at.bordersOf === `${linear}${view.columns}`) return at.borders;
  const found = [];
  const zones = new Int16Array(at.size);
  for (let i = 0; i < at.size; i++) zones[i] = zoneAt(rangeOf(at, i)[0]);
  for (let i = 0; i < at.size && data.zones.length > 1; i++) {
    const [x, y] = gridOf(at, i);
    const differs = (other) => other >= 0 && zones[other] !== zones[i];
    const inTile = (v) => linear || v % at.side !== at.side - 1;
    if (inTile(x) && differs(cellAt(at, x + 1, y))) found.push([x, y, false]);
    if (inTile(y) && differs(cellAt(at, x, y + 1))) found.push([x, y, true]);
  }
  at.borders = found;
  at.bordersOf = `${linear}${view.columns}`;
  return found;
}

// The physical address at which each row of squares starts.
function drawGutter() {
  if (!view.gutter) return;
  const ratio = window.devicePixelRatio || 1;
  context.clearRect(0, 0, view.gutter, canvas.height);
  context.fillStyle = theme.text;
  context.font = `${12 * ratio}px ${getComputedStyle(document.body).fontFamily}`;
  context.textBaseline = "top";
  for (let row = 0; row < view.rows; row++) {
    const index = row * view.columns * tileCells;
    if (index >= levels[0].size) break;
    const address = rangeOf(levels[0], index)[0] * data.page_size;
    const top = row * pitch() * view.zoom + view.y;
    // A row that begins above the view keeps its label until the next one comes.
    const last = top + pitch() * view.zoom - 18 * ratio;
    if (last < 0 || top > canvas.height) continue;
    context.fillText(sizeText(address).replace(".0", ""), 0, Math.min(last, Math.max(0, top)));
  }
}

function drawCursor() {
  const ratio = window.devicePixelRatio || 1;
  const [left, top, side] = boxOf(cursor.level, cursor.index);
  const grow = Math.max(2 * ratio, (8 * ratio - side) / 2);
  for (const [width, colour] of [[4, "#000"], [2, "#fff"]]) {
    context.lineWidth = width * ratio;
    context.strokeStyle = colour;
    context.strokeRect(left - grow, top - grow, side + 2 * grow, side + 2 * grow);
  }
}
