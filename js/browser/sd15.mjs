// Files of the layout of Stable Diffusion 1.5's UNet, with random shifts.
import { writeFileSync } from "node:fs";
import { join } from "node:path";

const WIDTHS = [320, 640, 1280, 1280];
const CONTEXT = 768;
const TIME = 1280;

function* resnet(path, inside, outside) {
  yield [`${path}.norm1`, [inside]];
  yield [`${path}.conv1`, [outside, inside, 3, 3]];
  yield [`${path}.time_emb_proj`, [outside, TIME]];
  yield [`${path}.norm2`, [outside]];
  yield [`${path}.conv2`, [outside, outside, 3, 3]];
  if (inside !== outside) yield [`${path}.conv_shortcut`, [outside, inside, 1, 1]];
}

function* attention(path, width) {
  yield [`${path}.norm`, [width]];
  for (const part of ["proj_in", "proj_out"]) yield [`${path}.${part}`, [width, width, 1, 1]];
  const block = `${path}.transformer_blocks.0`;
  for (const norm of ["norm1", "norm2", "norm3"]) yield [`${block}.${norm}`, [width]];
  for (const [layer, context] of [
    ["attn1", width],
    ["attn2", CONTEXT],
  ]) {
    for (const part of ["to_q", "to_out.0"]) yield [`${block}.${layer}.${part}`, [width, width]];
    for (const part of ["to_k", "to_v"]) yield [`${block}.${layer}.${part}`, [width, context]];
  }
  yield [`${block}.ff.net.0.proj`, [8 * width, width]];
  yield [`${block}.ff.net.2`, [width, 4 * width]];
}

function* layers() {
  yield ["conv_in", [320, 4, 3, 3]];
  yield ["time_embedding.linear_1", [TIME, 320]];
  yield ["time_embedding.linear_2", [TIME, TIME]];
  const skips = [320];
  let width = 320;
  for (const [i, outside] of WIDTHS.entries()) {
    for (let j = 0; j < 2; j++) {
      yield* resnet(`down_blocks.${i}.resnets.${j}`, width, outside);
      width = outside;
      skips.push(width);
      if (i < 3) yield* attention(`down_blocks.${i}.attentions.${j}`, width);
    }
    if (i === 3) continue;
    yield [`down_blocks.${i}.downsamplers.0.conv`, [width, width, 3, 3]];
    skips.push(width);
  }
  for (let j = 0; j < 2; j++) yield* resnet(`mid_block.resnets.${j}`, 1280, 1280);
  yield* attention("mid_block.attentions.0", 1280);
  for (const [i, outside] of [...WIDTHS].reverse().entries()) {
    for (let j = 0; j < 3; j++) {
      yield* resnet(`up_blocks.${i}.resnets.${j}`, width + skips.pop(), outside);
      width = outside;
      if (i > 0) yield* attention(`up_blocks.${i}.attentions.${j}`, width);
    }
    if (i < 3) yield [`up_blocks.${i}.upsamplers.0.conv`, [width, width, 3, 3]];
  }
  yield ["conv_norm_out", [320]];
  yield ["conv_out", [4, 320, 3, 3]];
}

/** Shape by name of all weights that are shifted. */
export const LAYOUT = new Map([...layers()].map(([path, shape]) => [`unet.${path}.weight`, shape]));

/** Write `count` files into a folder; return their paths. */
export function writeFiles(folder, count) {
  const names = [...LAYOUT.keys()].sort();
  const shapes = names.map((name) => LAYOUT.get(name));
  const lengths = shapes.map(([rows, ...others]) =>
    others.length ? Math.min(rows, others.reduce((product, side) => product * side)) : rows,
  );
  const svdiff = JSON.stringify({
    format: "svdiff-delta",
    version: 1,
    base: { components: { unet: "UNet2DConditionModel" }, repository: "owner/base", sample_size: 64 },
    parameters: {
      dtype: "F16",
      fingerprints: names.map((_, i) => String(i).padStart(21, "0") + "A").join(" "),
      shapes: shapes.map((shape) => shape.join("x")).join(" "),
    },
  });
  const header = { __metadata__: { svdiff } };
  let end = 0;
  names.forEach((name, i) => {
    header[name] = { dtype: "F32", shape: [lengths[i]], data_offsets: [end, (end += 4 * lengths[i])] };
  });
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return Array.from({ length: count }, (_, number) => {
    const values = Float32Array.from({ length: end / 4 }, (_, i) => 0.01 * Math.sin(i * (number + 1)));
    const path = join(folder, `subject-${number}.safetensors`);
    writeFileSync(path, Buffer.concat([length, text, Buffer.from(values.buffer)]));
    return path;
  });
}
