// `node test/cluster/build.ts`: makes what a cluster needs and the cache lacks, and prints where it is.
import { sentenceOf } from '#shared/errors.ts'
import type { Log } from './cache.ts'
import { debianRoot } from './debian.ts'
import { hyperkube } from './hyperkube.ts'
import { baseImages } from './images.ts'

/** Absolute paths of all that a cluster is made of. */
export interface Artifacts {
  hyperkube: string
  /** Root of the unpacked Debian packages. */
  debian: string
  /** Archives of the images that every node has. */
  images: string[]
}

/** Quick when everything is in the cache. */
export async function build(log: Log): Promise<Artifacts> {
  const debian = await debianRoot(log)
  const images = await baseImages(debian, log)
  return { debian, images, hyperkube: await hyperkube(log) }
}

/** A log on stderr: each line starts with the seconds since now. */
export function stderrLog(): Log {
  const start = Date.now()
  return (step) =>
    process.stderr.write(`[${((Date.now() - start) / 1_000).toFixed(1).padStart(6)} s] ${step}\n`)
}

if (import.meta.main) {
  try {
    const log = stderrLog()
    console.log(JSON.stringify(await build(log), undefined, 2))
    log('all is built')
  } catch (error) {
    console.error(sentenceOf(error))
    process.exitCode = 1
  }
}
