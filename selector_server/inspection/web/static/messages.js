// Decodes the contract's messages from protobuf's wire format, by the schema that the server makes of the contract.

const utf8 = new TextDecoder();
const VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5;
const PLAIN = { double: 0, float: 0, int64: 0, uint64: 0, uint32: 0, bool: false, string: "", bytes: new Uint8Array() };

/** A message's fields by their names. What is optional and was not sent is undefined; a map is a Map, and an enum's
 * value its word, such as "picked". Numbers beyond 2^53 lose digits. */
export function decode(schema, type, bytes) {
  const fields = schema.messages[type];
  const message = empty(schema, fields);
  const reader = new Reader(bytes);
  while (reader.more) {
    const tag = reader.varint();
    const field = fields[Math.floor(tag / 8)];
    const wire = tag % 8;
    if (field === undefined) reader.skip(wire);
    else if (field.map) {
      const entry = decode(schema, field.type, reader.bytes());
      message[field.name].set(entry.key, entry.value);
    } else if (!field.repeated) message[field.name] = value(schema, field, reader);
    else if (wire === BYTES && (field.kind in PLAIN || field.kind === "enum") && !["string", "bytes"].includes(field.kind))
      message[field.name] = packed(schema, field, reader.bytes());
    else message[field.name].push(value(schema, field, reader));
  }
  return message;
}

function empty(schema, fields) {
  const message = {};
  for (const field of Object.values(fields)) {
    if (field.map) message[field.name] = new Map();
    else if (field.repeated) message[field.name] = [];
    else if (field.optional) message[field.name] = undefined;
    else message[field.name] = field.kind === "enum" ? schema.enums[field.type][0] : PLAIN[field.kind];
  }
  return message;
}

function value(schema, field, reader) {
  switch (field.kind) {
    case "double": return reader.double();
    case "float": return reader.float();
    case "bool": return reader.varint() !== 0;
    case "string": return utf8.decode(reader.bytes());
    case "bytes": return reader.bytes();
    case "enum": return schema.enums[field.type][reader.varint()] ?? "unknown";
    case "message": return decode(schema, field.type, reader.bytes());
    default: return reader.varint(field.kind === "int64");
  }
}

/** Numbers of a list that stand one behind the other. */
function packed(schema, field, bytes) {
  if (field.kind === "float") return new Float32Array(bytes.slice().buffer);
  const reader = new Reader(bytes), list = [];
  while (reader.more) list.push(value(schema, field, reader));
  return list;
}

class Reader {
  constructor(bytes) {
    this.whole = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.at = 0;
  }

  get more() { return this.at < this.whole.length; }

  varint(signed = false) {
    let low = 0n, shift = 0n, plain = 0;
    for (let factor = 1; ; factor *= 128, shift += 7n) {
      const byte = this.view.getUint8(this.at++);
      plain += (byte & 127) * factor;
      if (signed) low |= BigInt(byte & 127) << shift;
      if (byte < 128) return signed ? Number(BigInt.asIntN(64, low)) : plain;
      if (shift > 63n) throw new RangeError("a number has too many bytes");
    }
  }

  double() { return this.view.getFloat64((this.at += 8) - 8, true); }

  float() { return this.view.getFloat32((this.at += 4) - 4, true); }

  bytes() {
    const length = this.varint();
    if (this.at + length > this.whole.length) throw new RangeError("a message is cut off");
    return this.whole.subarray(this.at, (this.at += length));
  }

  skip(wire) {
    if (wire === VARINT) this.varint();
    else if (wire === FIXED64) this.at += 8;
    else if (wire === BYTES) this.bytes();
    else if (wire === FIXED32) this.at += 4;
    else throw new RangeError("a message has a field of an unknown form");
  }
}
