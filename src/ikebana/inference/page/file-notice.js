// Browsers load no modules, workers or models from file:// URLs. This classic script shows the remedy.

if (location.protocol === "file:") {
  const about = document.getElementById("about");
  const [command, other] = ["python3 -m http.server 8000", "ikebana serve model.onnx"].map((text) => {
    const code = document.createElement("code");
    code.textContent = text;
    return code;
  });
  about.replaceChildren(
    "Browsers run this page only from a web server. In the folder of this page, run ",
    command,
    " or ",
    other,
    " and open localhost:8000 in the browser.",
  );
  about.classList.add("error");
  document.getElementById("drop").hidden = true;
}
