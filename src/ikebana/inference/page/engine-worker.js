// Runs the network in the browser: onnxruntime-web on one thread, which needs no special HTTP headers.
//
// model.onnx contains the preprocessing, the temperature and the class names. This worker decodes the photo upright and in
// sRGB, which the browser does, and reduces a large one as ikebana's decoder reduces JPEGs: to a half, a quarter or an eighth,
// while both sides stay at least twice the network's input. Each pixel is then the mean of those it replaces. ikebana reduces
// JPEGs only; the browser reduces every format, since it has less memory.

const MIN_SIZE_RATIO = 2; // of the reduced photo to the network's input
const MAX_REDUCTION = 8;
const MAX_PIXELS = 100e6; // per photo: each takes four bytes
const [TILE_ROWS, TILE_COLUMNS] = [512, 4096]; // bounds the memory, and the canvas below the limits of browsers
const PNG_SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const NEIGHBOURS = 5; // training photos per photo
let engine = null;

self.addEventListener("message", async ({ data: { id, file } }) => {
  try {
    engine ??= createEngine();
    const { model, session, ort, index } = await engine;
    self.postMessage({ id, result: file ? await predict(file, model, session, ort, index) : model });
  } catch (error) {
    if (!file) engine = null;
    self.postMessage({ id, error: error.message || "this photo cannot be classified", advice: error.advice ?? "" });
  }
});

function createProblem(what, advice) {
  return Object.assign(new Error(what), { advice });
}

async function fetchFile(path, options) {
  const response = await fetch(path, options).catch(() => null);
  if (!response?.ok) throw createProblem(`${path} could not be loaded`, "reloading the page, or another connection");
  return response;
}

async function createEngine() {
  const model = await (await fetchFile("model.json")).json();
  const { place, script, wasm, integrity } = model.runtime;
  const fetchVerified = (name) => fetchFile(place + name, { integrity: integrity[name], mode: "cors" });
  const [code, binary, graph] = await Promise.all([
    fetchVerified(script).then((response) => response.text()),
    fetchVerified(wasm).then((response) => response.arrayBuffer()),
    fetchFile("model.onnx").then((response) => response.arrayBuffer()),
  ]);
  // Imports the verified bytes: a second request for the script could return others.
  const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  const ort = await import(url);
  URL.revokeObjectURL(url);
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = binary;
  ort.env.logLevel = "error";
  const session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
  const index = model.has_neighbours ? readIndex(await (await fetchFile("neighbours.json")).json()) : null;
  return { model, session, ort, index };
}

async function predict(file, model, session, ort, index) {
  const { pixels, width, height } = await decode(file, model.image_size);
  const tensor = new ort.Tensor("uint8", pixels, [1, height, width, 3]);
  const outputs = ["probabilities"];
  if (model.familiarity_threshold !== null) outputs.push("familiarity");
  if (index) outputs.push("features");
  const output = await session.run({ photos: tensor }, outputs);
  const probabilities = [...output.probabilities.data];
  const confidence = Math.max(...probabilities);
  const isSure = model.threshold === null || confidence >= model.threshold;
  const familiarity = output.familiarity?.data[0] ?? null;
  const isKnown = familiarity === null || familiarity >= model.familiarity_threshold;
  return {
    name: file.name,
    label: isSure && isKnown ? model.classes[probabilities.indexOf(confidence)] : null,
    confidence,
    probabilities: Object.fromEntries(model.classes.map((name, index) => [name, probabilities[index]])),
    status: !isKnown ? "unknown" : isSure ? "ok" : "not sure",
    familiarity,
    neighbours: index ? findNeighbours(index, output.features.data, model.classes) : [],
    candidates: model.candidates ? selectCandidates(probabilities, model.candidates, isSure).map((index) => model.classes[index]) : [],
  };
}

// The training photos along the axes of evaluation/familiarity.py; their pictures are files of the page
function readIndex({ paths, labels, shape: [photos, width, axes], matrices }) {
  const bytes = (name) => Uint8Array.from(atob(matrices[name]), (character) => character.charCodeAt(0)).buffer;
  const [mean, scale, centre] = ["mean", "scale", "centre"].map((name) => new Float32Array(bytes(name)));
  const [directions, references] = ["axes", "references"].map((name) => readHalves(bytes(name)));
  return { paths, labels, photos, width, axes, mean, scale, centre, directions, references };
}

// float16 → float32; not every browser has Float16Array
function readHalves(buffer) {
  return Float32Array.from(new Uint16Array(buffer), (half) => {
    const [sign, exponent, fraction] = [half & 0x8000 ? -1 : 1, (half >> 10) & 31, half & 1023];
    return exponent ? sign * 2 ** (exponent - 15) * (1 + fraction / 1024) : sign * 2 ** -24 * fraction;
  });
}

function normalise(vector) {
  const length = Math.max(Math.sqrt(vector.reduce((sum, value) => sum + value * value, 0)), 1e-12);
  return vector.map((value) => value / length);
}

function findNeighbours({ paths, labels, photos, width, axes, mean, scale, centre, directions, references }, features, classes) {
  const unit = normalise(Float64Array.from(features, (value, index) => (value - mean[index]) / scale[index]));
  const projected = Float64Array.from(centre, (value) => -value);
  for (let row = 0; row < width; row += 1) {
    for (let axis = 0; axis < axes; axis += 1) projected[axis] += unit[row] * directions[row * axes + axis];
  }
  const direction = normalise(projected);
  const similarity = new Float64Array(photos);
  for (let photo = 0; photo < photos; photo += 1) {
    for (let axis = 0; axis < axes; axis += 1) similarity[photo] += direction[axis] * references[photo * axes + axis];
  }
  const nearest = [...similarity.keys()].sort((first, second) => similarity[second] - similarity[first]).slice(0, NEIGHBOURS);
  return nearest.map((photo) => ({
    path: paths[photo],
    label: classes[labels[photo]],
    similarity: similarity[photo],
    picture: `training-photos/${photo}.jpg`,
  }));
}

// The classes before which the more probable ones have at most the limit of probability, and at least two without a label,
// as evaluation/candidate_sets.py
function selectCandidates(probabilities, { limit, unsure_limit: unsureLimit }, isSure) {
  const selected = [];
  const minCount = isSure ? 1 : 2;
  let mass = 0;
  for (const index of [...probabilities.keys()].sort((first, second) => probabilities[second] - probabilities[first])) {
    if (mass > (isSure ? limit : unsureLimit) && selected.length >= minCount) break;
    selected.push(index);
    mass += probabilities[index];
  }
  return selected;
}

// Bits per channel in a PNG's header. Browsers decode all other formats to 8.
async function readBitDepth(file) {
  try {
    const header = new Uint8Array(await file.slice(0, 25).arrayBuffer());
    return PNG_SIGNATURE.every((byte, index) => header[index] === byte) ? header[24] : 8;
  } catch {
    throw createProblem("this file cannot be read", "choosing it again");
  }
}

async function decode(file, imageSize) {
  // Cameras and instruments use a small range of the 16 bits: the browser's upper 8 are then black. ikebana's decoder stretches.
  if ((await readBitDepth(file)) === 16) {
    const what = "browsers read only 8 of the 16 bits per channel of this PNG";
    throw createProblem(what, "a copy with 8 bits per channel, or ikebana serve or predict, which read all 16");
  }
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    throw createProblem("this browser cannot open this file as a photo", "a JPEG or PNG file");
  }
  try {
    if (bitmap.width * bitmap.height > MAX_PIXELS) throw createProblem("this photo has too many pixels", "a smaller one");
    return reduce(bitmap, imageSize);
  } finally {
    bitmap.close();
  }
}

function reduce(bitmap, imageSize) {
  let factor = 1;
  while (factor < MAX_REDUCTION && Math.min(bitmap.width, bitmap.height) >= 2 * factor * MIN_SIZE_RATIO * imageSize) factor *= 2;
  const [width, height] = [Math.ceil(bitmap.width / factor), Math.ceil(bitmap.height / factor)];
  const canvas = new OffscreenCanvas(Math.min(TILE_COLUMNS, bitmap.width), Math.min(TILE_ROWS, bitmap.height));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const pixels = new Uint8Array(width * height * 3);
  for (let top = 0; top < bitmap.height; top += TILE_ROWS) {
    for (let left = 0; left < bitmap.width; left += TILE_COLUMNS) {
      const tile = [left, top, Math.min(TILE_COLUMNS, bitmap.width - left), Math.min(TILE_ROWS, bitmap.height - top)];
      averageTile(readTile(context, bitmap, tile), tile, factor, pixels, width);
    }
  }
  return { pixels, width, height };
}

// RGBA [rows, columns] of a tile of the photo, on white
function readTile(context, bitmap, [left, top, columns, rows]) {
  context.fillStyle = "white"; // background of transparent pixels
  context.fillRect(0, 0, columns, rows);
  context.drawImage(bitmap, left, top, columns, rows, 0, 0, columns, rows);
  const rgba = context.getImageData(0, 0, columns, rows).data;
  // A canvas beyond the browser's limits stays blank without an error.
  if (!rgba[3]) throw createProblem("this photo is too large for this browser", "a smaller one");
  return rgba;
}

// Writes the means of factor x factor squares: RGBA [rows, columns] of a tile → its part of the reduced RGB [height, width]
function averageTile(rgba, [tileLeft, tileTop, columns, rows], factor, pixels, width) {
  for (let top = 0; top < rows; top += factor) {
    let target = 3 * (((tileTop + top) / factor) * width + tileLeft / factor);
    for (let left = 0; left < columns; left += factor) {
      const [bottom, right] = [Math.min(top + factor, rows), Math.min(left + factor, columns)];
      let [red, green, blue] = [0, 0, 0];
      for (let row = top; row < bottom; row += 1) {
        for (let source = 4 * (row * columns + left); source < 4 * (row * columns + right); source += 4) {
          red += rgba[source];
          green += rgba[source + 1];
          blue += rgba[source + 2];
        }
      }
      const count = (bottom - top) * (right - left);
      pixels[target++] = Math.round(red / count);
      pixels[target++] = Math.round(green / count);
      pixels[target++] = Math.round(blue / count);
    }
  }
}
