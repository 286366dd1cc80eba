// The server's own description of what it answers, made readable. Nothing comes from elsewhere.

function made(tag, text = "", ...inside) {
  const element = document.createElement(tag);
  element.textContent = text;
  element.append(...inside);
  return element;
}

function example(verb, path, secured) {
  const token = secured ? " -H 'Authorization: Bearer TOKEN'" : "";
  const url = new URL(`.${path}`, location.href).href;
  const calls = verb === "post" ? [`-F photo=@garden.jpg -F photo=@window.jpg ${url}`, `--data-binary @garden.jpg ${url}`] : [url];
  return made("pre", calls.map((call) => `curl${token} ${call}`).join("\n"));
}

// { "$ref": "#/components/schemas/Answer" } → its fields, each with its type
function shape(schema, all, deep = 0) {
  if (!schema) return "";
  if (schema.$ref) return shape(all[schema.$ref.split("/").at(-1)], all, deep);
  if (schema.anyOf) return schema.anyOf.map((each) => shape(each, all, deep)).join(" or ");
  if (schema.type === "array") return `[${shape(schema.items, all, deep)}, …]`;
  if (schema.properties) {
    const pad = "  ".repeat(deep + 1);
    const rows = Object.entries(schema.properties).map(([name, each]) => `${pad}"${name}": ${shape(each, all, deep + 1)}`);
    return `{\n${rows.join(",\n")}\n${"  ".repeat(deep)}}`;
  }
  if (schema.additionalProperties) return `{name: ${shape(schema.additionalProperties, all, deep)}, …}`;
  return schema.type ?? "anything";
}

function section(path, verb, operation, all) {
  const name = made("code", path);
  const title = made("h2", "", made("span", verb.toUpperCase()), " ", name);
  title.firstChild.className = "verb";
  const rows = Object.entries(operation.responses).filter(([status]) => status !== "200");
  const table = made("table", "", ...rows.map(([status, each]) => made("tr", "", made("th", status), made("td", each.description.replaceAll("`", "")))));
  const answer = operation.responses["200"]?.content?.["application/json"]?.schema;
  const parts = [title, made("p", `${operation.summary}.`), example(verb, path, operation.security)];
  if (answer && Object.keys(answer).length) parts.push(made("pre", shape(answer, all)));
  if (rows.length) parts.push(table);
  return made("section", "", ...parts);
}

const told = await (await fetch("openapi.json")).json();
for (const [path, verbs] of Object.entries(told.paths)) {
  for (const [verb, operation] of Object.entries(verbs)) {
    document.getElementById("paths").append(section(path, verb, operation, told.components?.schemas ?? {}));
  }
}
