// The box that says what is at a place.

function sizeText(bytes) {
  if (bytes < 1024) return bytes ? `${bytes} B` : "0";
  let amount = bytes;
  for (const unit of ["KiB", "MiB", "GiB", "TiB"]) {
    amount /= 1024;
    if (amount < 1023.95 || unit === "TiB") return `${amount.toFixed(1)} ${unit}`;
  }
  return "";
}

const hex = (number) => `0x${number.toString(16)}`;

function element(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function show(index, spoken) {
  const at = level();
  cursor = { level: at, index };
  const [start, end] = rangeOf(at, index);
  const parts = holds(at, index);
  const zone = zonesOf(start, end).join(", ") || "none";
  const list = element("dl");
  for (const [term, text] of [
    ["Frames", `${hex(start)}\u2013${hex(end - 1)}`],
    ["Address", hex(start * data.page_size)],
    ["Size", sizeText((end - start) * data.page_size)],
    ["Zone", zone],
  ]) list.append(element("dt", term), element("dd", text));
  const items = element("ul");
  for (const [type, frames] of parts) {
    const item = element("li");
    item.append(element("span", "", `swatch t${type}${data.hatched[type] ? " hatched" : ""}`));
    item.append(element("span", data.types[type], "what"));
    item.append(element("span", sizeText(frames * data.page_size), "num"));
    items.append(item);
  }
  tip.replaceChildren(element("p", data.types[parts[0][0]], "title"), list, items);
  if (kept) tip.append(element("code", `memdesc what ${hex(start)}`));
  tip.classList.toggle("kept", kept);
  tip.hidden = false;
  placeTip();
  if (spoken) {
    byId("live").textContent = `${data.types[parts[0][0]]}, frames ${hex(start)} to ${hex(end - 1)}, `
      + `zone ${zone}: ${parts.map(([type, frames]) => `${data.types[type]} ${sizeText(frames * data.page_size)}`).join(", ")}`;
  }
  draw();
}

function placeTip() {
  const ratio = window.devicePixelRatio || 1;
  const [left, top, side] = boxOf(cursor.level, cursor.index).map((v) => v / ratio);
  const right = left + side + 16;
  const fits = right + tip.offsetWidth <= plate.clientWidth;
  const x = fits ? right : left - tip.offsetWidth - 16;
  const lowest = Math.max(0, plate.clientHeight - tip.offsetHeight);
  const beside = x >= 0;
  tip.style.left = `${beside ? x : Math.max(0, (plate.clientWidth - tip.offsetWidth) / 2)}px`;
  tip.style.top = `${beside ? Math.min(Math.max(0, top - 12), lowest) : top + side + 16}px`;
}

function hide() {
  kept = false;
  cursor = null;
  tip.hidden = true;
  draw();
}
