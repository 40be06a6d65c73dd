import own from '../../package.json' with { type: 'json' }

/** Of the project; the image is tagged with it. */
export const version: string = own.version
