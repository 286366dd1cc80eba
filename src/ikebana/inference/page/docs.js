// Shows the server's OpenAPI description as a readable page, without files from other hosts.

function createElement(tag, text = "", ...children) {
  const element = document.createElement(tag);
  element.textContent = text;
  element.append(...children);
  return element;
}

function createExample(method, path, needsToken) {
  const token = needsToken ? " -H 'Authorization: Bearer TOKEN'" : "";
  const url = new URL(`.${path}`, location.href).href;
  const calls = method === "post" ? [`-F photo=@garden.jpg -F photo=@window.jpg ${url}`, `--data-binary @garden.jpg ${url}`] : [url];
  return createElement("pre", calls.map((call) => `curl${token} ${call}`).join("\n"));
}

// { "$ref": "#/components/schemas/NAME" } → its fields and their types
function formatSchema(schema, schemas, depth = 0) {
  if (!schema) return "";
  if (schema.$ref) return formatSchema(schemas[schema.$ref.split("/").at(-1)], schemas, depth);
  if (schema.anyOf) return schema.anyOf.map((option) => formatSchema(option, schemas, depth)).join(" or ");
  if (schema.type === "array") return `[${formatSchema(schema.items, schemas, depth)}, …]`;
  if (schema.properties) {
    const indent = "  ".repeat(depth + 1);
    const rows = Object.entries(schema.properties).map(([name, property]) => `${indent}"${name}": ${formatSchema(property, schemas, depth + 1)}`);
    return `{\n${rows.join(",\n")}\n${"  ".repeat(depth)}}`;
  }
  if (schema.additionalProperties) return `{name: ${formatSchema(schema.additionalProperties, schemas, depth)}, …}`;
  return schema.type ?? "anything";
}

function createSection(path, method, operation, schemas) {
  const name = createElement("code", path);
  const title = createElement("h2", "", createElement("span", method.toUpperCase()), " ", name);
  title.firstChild.className = "verb";
  const errors = Object.entries(operation.responses).filter(([status]) => status !== "200");
  const rows = errors.map(([status, { description }]) => createElement("tr", "", createElement("th", status), createElement("td", description.replaceAll("`", ""))));
  const response = operation.responses["200"]?.content?.["application/json"]?.schema;
  const body = operation.requestBody?.description?.replaceAll("`", "");
  const children = [title, createElement("p", `${operation.summary}.`), ...(body ? [createElement("p", body)] : []), createExample(method, path, operation.security)];
  if (response && Object.keys(response).length) children.push(createElement("pre", formatSchema(response, schemas)));
  if (rows.length) children.push(createElement("table", "", ...rows));
  return createElement("section", "", ...children);
}

const api = await (await fetch("openapi.json")).json();
for (const [path, operations] of Object.entries(api.paths)) {
  for (const [method, operation] of Object.entries(operations)) {
    document.getElementById("paths").append(createSection(path, method, operation, api.components?.schemas ?? {}));
  }
}
