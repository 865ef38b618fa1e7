// The errors that leave this package, named as in section 1 of the specification.

/** Anything that is refused. `field` is the field, parameter or argument that is wrong, where there is one. */
export class DeltaError extends Error {
  readonly field: string;

  constructor(message: string, field = "") {
    super(message);
    this.name = new.target.className;
    this.field = field;
  }

  /** The class's own name, which bundlers that shorten names leave as it is. */
  static readonly className: string = "DeltaError";
}

/** The file itself is wrong. */
export class FormatError extends DeltaError {
  static override readonly className: string = "FormatError";
}

/** The safetensors container is broken (section 3). */
export class HeaderError extends FormatError {
  static override readonly className = "HeaderError";
}

/** The `svdiff` document is broken (sections 5 and 8). */
export class MetadataError extends FormatError {
  static override readonly className = "MetadataError";
}

/** Number format, shape or values of a tensor are wrong (sections 4, 6.4 and 7.3). */
export class TensorError extends FormatError {
  static override readonly className = "TensorError";
}

/** The file has another major version, or needs a feature that is not known here (section 9). */
export class VersionError extends FormatError {
  static override readonly className = "VersionError";
}

/** An argument is wrong. */
export class InputError extends DeltaError {
  static override readonly className = "InputError";
}

/** Two deltas were made for different bases (section 7.1). */
export class BaseMismatchError extends DeltaError {
  static override readonly className = "BaseMismatchError";
}

/** A selector means nothing, or names nothing (section 7.5). */
export class SelectionError extends DeltaError {
  static override readonly className = "SelectionError";
}
