// The network in the browser: onnxruntime-web on one thread, which needs no special headers of whoever hosts the folder.
//
// Preparation, temperature and class names are inside model.onnx; what is left to do here is to open the photo upright and in
// sRGB, which the browser does, and to reduce large ones as ikebana's own decoder reduces JPEGs: a half, a quarter or an eighth,
// as long as both sides stay at least twice what the network sees. A pixel is then the mean of those it stands for. Here that is
// done to photos of all kinds, where ikebana opens others than JPEGs whole: a browser has less memory.

const SMALLEST = 2; // times the network's side
const LARGEST = 8; // the most that a side is divided by
const PIXELS = 100e6; // of one photo: its colours take four bytes each
const [ROWS, ACROSS] = [512, 4096]; // that are read at a time: memory stays flat, and no canvas is larger than browsers have
const PNG = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]; // how such a file begins
let ready = null;

self.addEventListener("message", async ({ data: { number, file } }) => {
  try {
    ready ??= prepare();
    const { model, session, ort } = await ready;
    self.postMessage({ number, said: file ? await look(file, model, session, ort) : model });
  } catch (error) {
    if (!file) ready = null;
    self.postMessage({ number, what: error.message || "this photo cannot be looked at", advice: error.advice ?? "" });
  }
});

function problem(what, advice) {
  return Object.assign(new Error(what), { advice });
}

async function fetched(path, options) {
  const response = await fetch(path, options).catch(() => null);
  if (!response?.ok) throw problem(`${path} could not be loaded`, "the page once more, or another connection");
  return response;
}

async function prepare() {
  const model = await (await fetched("model.json")).json();
  const { place, script, wasm, integrity } = model.runtime;
  const checked = (name) => fetched(place + name, { integrity: integrity[name], mode: "cors" });
  const [code, binary, graph] = await Promise.all([
    checked(script).then((each) => each.text()),
    checked(wasm).then((each) => each.arrayBuffer()),
    fetched("model.onnx").then((each) => each.arrayBuffer()),
  ]);
  // What was checked is what runs: a second request for the script could bring another one.
  const address = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  const ort = await import(address);
  URL.revokeObjectURL(address);
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = binary;
  ort.env.logLevel = "error";
  const session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
  return { model, session, ort };
}

async function look(file, model, session, ort) {
  const { pixels, width, height } = await opened(file, model.side);
  const photo = new ort.Tensor("uint8", pixels, [1, height, width, 3]);
  const { probabilities } = await session.run({ photos: photo }, ["probabilities"]);
  const shares = [...probabilities.data];
  const confidence = Math.max(...shares);
  const sure = model.threshold === null || confidence >= model.threshold;
  return {
    name: file.name,
    label: sure ? model.classes[shares.indexOf(confidence)] : null,
    confidence,
    probabilities: Object.fromEntries(model.classes.map((name, row) => [name, shares[row]])),
    status: sure ? "used" : "not sure",
  };
}

// Bits of a colour, as a PNG's header has them; other files that browsers open have 8, or what a screen shows of them.
async function depth(file) {
  try {
    const head = new Uint8Array(await file.slice(0, 25).arrayBuffer());
    return PNG.every((byte, place) => head[place] === byte) ? head[24] : 8;
  } catch {
    throw problem("this file cannot be read", "choosing it once more");
  }
}

async function opened(file, side) {
  // Cameras and instruments use a small part of 16 bits: the browser's upper 8 are then black, where ikebana's decoder stretches.
  if ((await depth(file)) === 16) {
    const what = "a browser reads only 8 of the 16 bits a colour that this PNG has";
    throw problem(what, "a copy saved with 8 bits, or ikebana serve or predict, which read all 16");
  }
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    throw problem("this browser cannot open the file as a photo", "JPEG or PNG");
  }
  try {
    if (bitmap.width * bitmap.height > PIXELS) throw problem("this photo has too many pixels", "a smaller one");
    return reduced(bitmap, side);
  } finally {
    bitmap.close();
  }
}

function reduced(bitmap, side) {
  let by = 1;
  while (by < LARGEST && Math.min(bitmap.width, bitmap.height) >= 2 * by * SMALLEST * side) by *= 2;
  const [width, height] = [Math.ceil(bitmap.width / by), Math.ceil(bitmap.height / by)];
  const canvas = new OffscreenCanvas(Math.min(ACROSS, bitmap.width), Math.min(ROWS, bitmap.height));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const pixels = new Uint8Array(width * height * 3);
  for (let top = 0; top < bitmap.height; top += ROWS) {
    for (let left = 0; left < bitmap.width; left += ACROSS) {
      const piece = [left, top, Math.min(ACROSS, bitmap.width - left), Math.min(ROWS, bitmap.height - top)];
      average(drawn(context, bitmap, piece), piece, by, pixels, width);
    }
  }
  return { pixels, width, height };
}

// RGBA [rows, across] of a piece of the photo, on white
function drawn(context, bitmap, [left, top, across, rows]) {
  context.fillStyle = "white"; // under what is transparent
  context.fillRect(0, 0, across, rows);
  context.drawImage(bitmap, left, top, across, rows, 0, 0, across, rows);
  const piece = context.getImageData(0, 0, across, rows).data;
  // A canvas that is larger than the browser can have draws nothing, and says nothing.
  if (!piece[3]) throw problem("this photo is too large for this browser", "a smaller one");
  return piece;
}

// Means of squares of pixels: a piece, RGBA [rows, across] → its place in the RGB of a photo that is so wide
function average(piece, [first, above, across, rows], by, pixels, width) {
  for (let top = 0; top < rows; top += by) {
    let place = 3 * (((above + top) / by) * width + first / by);
    for (let left = 0; left < across; left += by) {
      const [bottom, right] = [Math.min(top + by, rows), Math.min(left + by, across)];
      let [red, green, blue] = [0, 0, 0];
      for (let row = top; row < bottom; row += 1) {
        for (let at = 4 * (row * across + left); at < 4 * (row * across + right); at += 4) {
          red += piece[at];
          green += piece[at + 1];
          blue += piece[at + 2];
        }
      }
      const many = (bottom - top) * (right - left);
      pixels[place++] = Math.round(red / many);
      pixels[place++] = Math.round(green / many);
      pixels[place++] = Math.round(blue / many);
    }
  }
}
