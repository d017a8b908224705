// A graph in onnxruntime-web's WebAssembly: node wasm.mjs JOB.json
// The job: {graph, input, type, data, shape, output, out}; data is a file of raw numbers.
import { readFileSync, writeFileSync } from 'node:fs';
import * as ort from 'onnxruntime-web';

const job = JSON.parse(readFileSync(process.argv[2], 'utf8'));
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(readFileSync(job.graph), { executionProviders: ['wasm'] });
const bytes = readFileSync(job.data);
const copy = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
const values = job.type === 'int64' ? new BigInt64Array(copy) : new Float32Array(copy);
const found = await session.run({ [job.input]: new ort.Tensor(job.type, values, job.shape) });
const { data, dims } = found[job.output];
writeFileSync(job.out, JSON.stringify({ values: Array.from(data), shape: dims }));
