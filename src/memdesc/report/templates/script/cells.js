// The cells of the picture: unpacked from the page, and what each holds.

const data = JSON.parse(byId("picture-data").textContent);
const canvas = byId("canvas");
const plate = byId("plate");
const tip = byId("tip");
const context = canvas.getContext("2d");

async function unpack(columns) {
  const packed = Uint8Array.from(atob(columns.zlib), (char) => char.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  const kinds = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array, 8: Float64Array };
  const result = {};
  let offset = 0;
  for (const { name, width, length } of columns.layout) {
    const end = offset + width * length;
    result[name] = new kinds[width](buffer.slice(offset, end));
    offset = end;
  }
  return result;
}

const shift = data.order - data.fine; // 0, or 2: four fine cells in a cell
let fine = null; // columns of the finest cells
let firstOther = null; // index of the first other type of each fine cell
let levels = []; // how cells are laid out, coarse first

function prepare(columns) {
  fine = columns;
  firstOther = new Uint32Array(data.cells + 1);
  for (let i = 0; i < data.cells; i++) firstOther[i + 1] = firstOther[i] + fine.more[i];
  const coarse = { shift, size: shift ? Math.ceil(data.cells / 4) : data.cells, top: fine.top };
  if (shift) {
    coarse.top = new Uint16Array(coarse.size);
    for (let i = 0; i < coarse.size; i++) coarse.top[i] = holds(coarse, i)[0][0];
  }
  levels = [coarse];
  if (shift) levels.push({ shift: 0, size: data.cells, top: fine.top });
  for (const level of levels) {
    level.side = 1 << (data.tile_order + (level.shift < shift ? 1 : 0));
    Object.assign(level, curve(level.side));
  }
}

// [[type, frames], ...] of a cell, the largest first.
function holds(level, index) {
  const sums = new Map();
  const add = (type, frames) => sums.set(type, (sums.get(type) || 0) + frames);
  const end = Math.min((index + 1) << level.shift, data.cells);
  for (let i = index << level.shift; i < end; i++) {
    const [start, stop] = framesOf(i);
    let left = stop - start;
    for (let k = firstOther[i]; k < firstOther[i + 1]; k++) {
      add(fine.type[k], fine.frames[k]);
      left -= fine.frames[k];
    }
    add(fine.top[i], left);
  }
  return [...sums].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
}

// [first frame, frame after the last] of a fine cell.
function framesOf(index) {
  let low = 0;
  let high = data.spans.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (data.spans[middle][2] <= index) low = middle;
    else high = middle - 1;
  }
  const [spanStart, spanEnd, cellStart] = data.spans[low];
  const start = spanStart + (index - cellStart) * 2 ** data.fine;
  return [start, Math.min(start + 2 ** data.fine, spanEnd)];
}

function rangeOf(level, index) {
  const last = Math.min(((index + 1) << level.shift) - 1, data.cells - 1);
  return [framesOf(index << level.shift)[0], framesOf(last)[1]];
}

function zonesOf(start, end) {
  return data.zones.filter(([low, high]) => low < end && start < high).map((zone) => zone[2]);
}

function zoneAt(pfn) {
  return data.zones.findIndex(([low, high]) => low <= pfn && pfn < high);
}

// The Hilbert curve, as in hilbert.py: place of a step, and step at a place.
function curve(side) {
  const place = new Uint32Array(side * side);
  const step = new Uint32Array(side * side);
  for (let i = 0; i < side * side; i++) {
    let x = 0;
    let y = 0;
    for (let size = 1, rest = i; size < side; size *= 2, rest = Math.floor(rest / 4)) {
      const right = (rest >> 1) & 1;
      const up = (rest ^ right) & 1;
      if (!up) {
        if (right) [x, y] = [size - 1 - x, size - 1 - y];
        [x, y] = [y, x];
      }
      x += size * right;
      y += size * up;
    }
    place[i] = y * side + x;
    step[y * side + x] = i;
  }
  return { place, step };
}
