// The tables of spec/v1/modules.json, by which section 7.5 tells layers; a test compares.

export const PATTERNS = {
  attention: /^(?:(?!.*(?:norm|blocks|layers|scale_shift|_gate\b|_proj\b))\w*(?:attn|attention)\w*(?<!s))$/i,
  projection: /^(?:to_(?:q|k|v|qk|kv|qkv|out|add_out)(?:_\w+)?|query|key|value|proj_attn)$/,
  keys_and_values: /^(?:(?!.*norm)(?:\w*_)?(?:k|v|kv|w?qkvz?|key|value)(?:_\w+)?|c_attn)$/i,
  cross: /^(?:\w*attn2|\w*cross_?att(?:n|ention)\w*|EncDecAttention|encoder_attn|\w+_to_\w+_attn|face_adapter)$/i,
  added: /^(?:add_(?:q|k|v|kv|qkv)_proj|to_add_out|norm_added_\w+|to_(?:q|k|v|out)_t|[qk]_rms_norm_t|txt_(?:\w+_)?(?:kv|qkv|proj))$/,
  feed_forward: /^(?:(?!.*(?:norm|adaln|embed))(?:\w+_)?(?:mlp|ff|ffn|feed_forward|intermediate|experts?)(?:_\w+)?|DenseReluDense|fc[12]|(?:gate|up|down|gate_up)_proj)$/,
  fused: /^(?:\w*_mlp_\w+)$/,
  output: /layer\.\d+\.output\./,
  block: /\.(?:\w*(?:blocks?|layers?|refiner)|h)\.(\d+)\./,
  expert: /\.experts\.\d+\.|\[\d+\]$/,
} as const;

export const COMPONENTS: Readonly<Record<string, RegExp>> = {
  unet: /^(?:unet)\./,
  transformer: /^(?:transformer(?:_\d+)?)\./,
  text: /^(?:text_encoder(?:_\d+)?)\./,
  "text-1": /^(?:text_encoder)\./,
  "text-2": /^(?:text_encoder_2)\./,
  "text-3": /^(?:text_encoder_3)\./,
};
