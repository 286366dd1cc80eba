// All predictions together: their summary, and a table with the columns of `ikebana predict`.

const COLUMNS = ["path", "label", "confidence", "status", "candidates", "familiarity"];
const NO_LABEL = ["not sure", "unlike the training photos", "not classified", "waiting"];
const PROBABILITY_DECIMALS = 6;

// → "9 tulip, 5 not sure": classes by their number of photos, then photos without a label
export function summarise(cards) {
  const counts = new Map();
  for (const card of cards) counts.set(describe(card), (counts.get(describe(card)) ?? 0) + 1);
  const rank = (key) => NO_LABEL.findIndex((text) => key === `2${text}`);
  const entries = [...counts].sort(([first, few], [second, many]) => rank(first) - rank(second) || many - few);
  return entries.map(([key, count]) => `${count} ${key.slice(1)}`).join(", ");
}

// The digit distinguishes a class that is called "waiting" from a photo that waits.
function describe({ prediction, error }) {
  if (error !== null) return `2${NO_LABEL[2]}`;
  if (prediction === null) return `2${NO_LABEL[3]}`;
  if (prediction.status === "unknown") return `2${NO_LABEL[1]}`;
  return prediction.label === null ? `2${NO_LABEL[0]}` : `1${prediction.label}`;
}

// → the text of a CSV file, one row per photo
export function toTable(cards, classes) {
  const rows = [[...COLUMNS, ...classes.map((name) => `p:${name}`)]];
  for (const { name, prediction, error } of cards) {
    if (prediction === null) {
      rows.push([name, "", "", error ?? "waiting", "", "", ...classes.map(() => "")]);
      continue;
    }
    const { label, confidence, status, candidates, familiarity, probabilities } = prediction;
    const numbers = classes.map((name) => formatNumber(probabilities[name]));
    rows.push([name, label ?? "", formatNumber(confidence), status, joinCandidates(candidates), formatNumber(familiarity), ...numbers]);
  }
  return rows.map((row) => row.map(quote).join(",") + "\n").join("");
}

const formatNumber = (value) => (value === null || value === undefined ? "" : value.toFixed(PROBABILITY_DECIMALS));
// As inference/table_formats.py does.
const joinCandidates = (names) => names.map((name) => name.replaceAll("\\", "\\\\").replaceAll(";", "\\;")).join("; ");
const quote = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

export function download(text, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
