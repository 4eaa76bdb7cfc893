// Steps a cell in onnxruntime-node or onnxruntime-web: `node client_node.js PACKAGE JOB.json`. The protocol is in run.py.
const fs = require("fs");
const path = require("path");

async function main() {
  const [name, file] = process.argv.slice(2);
  const ort = require(require.resolve(name, { paths: [process.cwd()] }));
  const job = JSON.parse(fs.readFileSync(file));
  if (name === "onnxruntime-web") ort.env.wasm.numThreads = 1;
  const options = { executionProviders: [name === "onnxruntime-web" ? "wasm" : "cpu"], intraOpNumThreads: 1, logSeverityLevel: 3 };
  const model = new Uint8Array(fs.readFileSync(path.join(job.folder, "cell.onnx")));
  const session = await ort.InferenceSession.create(model, options);
  const whole = job.input.type === "int64";
  const bytes = fs.readFileSync(path.join(job.folder, "input.bin"));
  const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
  const input = whole ? new BigInt64Array(buffer) : new Float32Array(buffer);
  const size = input.length / job.steps;
  let states = {};
  for (const s of job.states) states[s.past] = new ort.Tensor("float32", new Float32Array(s.dims.reduce((a, b) => a * b, 1)), s.dims);
  const series = Object.fromEntries(job.outputs.map((o) => [o, []]));
  for (let t = 0; t < job.steps; t++) {
    const x = new ort.Tensor(job.input.type, input.slice(t * size, (t + 1) * size), job.input.dims);
    const found = await session.run({ input: x, ...states });
    for (const o of job.outputs) series[o].push(Buffer.from(new Uint8Array(found[o].data.slice().buffer)));
    states = Object.fromEntries(job.states.map((s) => [s.past, found[s.present]]));
  }
  job.outputs.forEach((o, i) => fs.writeFileSync(path.join(job.folder, `output${i}.bin`), Buffer.concat(series[o])));
  console.log(require(path.join(path.dirname(require.resolve(name, { paths: [process.cwd()] })), "..", "package.json")).version);
}

main().catch((error) => {
  console.error(String(error));
  process.exit(1);
});
