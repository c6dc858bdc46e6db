// Colours that colour-blind readers can tell apart: viridis by depth and similarity; classes by Petroff (2021).

const VIRIDIS = ["#440154", "#482475", "#414487", "#355f8d", "#2a788e", "#21918c", "#22a884", "#44bf70", "#7ad151", "#bddf26", "#fde725"];
const CLASSES = ["#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"];
const SYMBOLS = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "star", "x", "triangle-left", "triangle-right"];
const GLYPHS = "●■▲◆▼✚★✖◀▶"; // the same as text, in the same order

export const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
export const SEQUENTIAL = VIRIDIS.map((colour, i) => [i / (VIRIDIS.length - 1), colour]);
// Less is blue, more is orange, and the middle is the paper's own colour.
export const diverging = (middle) => [[0, "#1f5fa8"], [0.25, "#7fb0dd"], [0.5, middle], [0.75, "#f0a561"], [1, "#b34700"]];

export const symbol = (i) => SYMBOLS[i % SYMBOLS.length];
export const glyph = (i) => GLYPHS[i % GLYPHS.length];
export const isDark = () => document.documentElement.dataset.theme === "dark";

function mix(one, other, share) {
  const parts = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  const [a, b] = [parts(one), parts(other)];
  return `#${a.map((v, i) => Math.round(v + share * (b[i] - v)).toString(16).padStart(2, "0")).join("")}`;
}

// From shallow to deep; the end that would vanish in the paper is left out.
export function layerColour(i, count) {
  const share = count > 1 ? i / (count - 1) : 0;
  const place = (isDark() ? 0.28 + 0.72 * share : 0.8 * share) * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return mix(VIRIDIS[low], VIRIDIS[low + 1], place - low);
}

// By the class's number alone; multiples of the golden ratio stay apart however many there are.
export function classColour(c) {
  if (c < 0) return "#999999";
  return c < CLASSES.length ? CLASSES[c] : `hsl(${Math.round(((c * 0.618034) % 1) * 360)} 65% ${isDark() ? 62 : 45}%)`;
}
