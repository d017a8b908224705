// What transformers.js makes of an exported folder: node run.mjs JOB.json, which names where to write.
// The job: {root, name, dtype, resample, labels, template, pictures, texts, pixels, count, size, out}
import { readFileSync, writeFileSync } from 'node:fs';
import { AutoProcessor, AutoTokenizer, CLIPTextModelWithProjection, CLIPVisionModelWithProjection, Tensor, env, load_image,
  pipeline } from '@huggingface/transformers';

const job = JSON.parse(readFileSync(process.argv[2], 'utf8'));
env.allowRemoteModels = false;
env.localModelPath = job.root;
const options = job.dtype ? { dtype: job.dtype } : {};

const floats = (tensor) => Array.from(tensor.data);
const classify = await pipeline('zero-shot-image-classification', job.name, options);
if (job.resample) classify.processor.image_processor.resample = job.resample;
const scores = [];
for (const picture of job.pictures) {
  scores.push(await classify(picture, job.labels, { hypothesis_template: job.template }));
}

const processor = await AutoProcessor.from_pretrained(job.name);
if (job.resample) processor.image_processor.resample = job.resample;
const prepared = [];
for (const picture of job.pictures) {
  const { pixel_values } = await processor(await load_image(picture));
  prepared.push(floats(pixel_values));
}

const tokenizer = await AutoTokenizer.from_pretrained(job.name);
const textModel = await CLIPTextModelWithProjection.from_pretrained(job.name, options);
const words = await tokenizer(job.texts, { padding: true, truncation: true });
const { text_embeds } = await textModel(words);

const visionModel = await CLIPVisionModelWithProjection.from_pretrained(job.name, options);
const bytes = readFileSync(job.pixels);
const values = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
const { image_embeds } = await visionModel({
  pixel_values: new Tensor('float32', values, [job.count, 3, job.size, job.size]),
});

writeFileSync(job.out, JSON.stringify({
  scores,
  prepared,
  ids: words.input_ids.tolist().map((row) => row.map(Number)),
  text_embeds: text_embeds.tolist(),
  image_embeds: image_embeds.tolist(),
}));
