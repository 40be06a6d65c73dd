import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'

export interface ImageConfig {
  /** `registry/name:tag` */
  name: string
  architecture: string
  config: object
}

/** GNU tar's options that make the same archive of the same files, whoever makes it and when. */
const reproducible = [
  '--sort=name',
  '--mtime=@0',
  '--owner=0',
  '--group=0',
  '--numeric-owner',
  '--format=gnu',
]

/** Writes an OCI image layout as one tar archive to `output`; each folder becomes a layer, the first lowest. */
export function writeArchive(
  layers: readonly string[],
  image: ImageConfig,
  work: string,
  output: string,
): void {
  const layout = join(work, 'layout')
  mkdirSync(join(layout, 'blobs/sha256'), { recursive: true })
  const put = (bytes: Buffer, mediaType: string) => {
    const digest = sha256(bytes)
    writeFileSync(join(layout, 'blobs/sha256', digest), bytes)
    return { mediaType, digest: `sha256:${digest}`, size: bytes.length }
  }
  const json = (value: object, mediaType: string) => put(Buffer.from(JSON.stringify(value)), mediaType)
  const made = layers.map((folder) => {
    const tar = join(work, 'layer.tar')
    execFileSync('tar', [...reproducible, '-C', folder, '-cf', tar, '.'])
    const bytes = readFileSync(tar)
    rmSync(tar)
    const blob = put(gzipSync(bytes, { level: 6 }), 'application/vnd.oci.image.layer.v1.tar+gzip')
    return { diffId: `sha256:${sha256(bytes)}`, blob }
  })
  const config = json(
    {
      architecture: image.architecture,
      os: 'linux',
      created: '1970-01-01T00:00:00Z',
      config: image.config,
      rootfs: { type: 'layers', diff_ids: made.map((l) => l.diffId) },
      history: made.map(() => ({ created: '1970-01-01T00:00:00Z', created_by: 'npm run image' })),
    },
    'application/vnd.oci.image.config.v1+json',
  )
  const manifest = json(
    {
      schemaVersion: 2,
      mediaType: 'application/vnd.oci.image.manifest.v1+json',
      config,
      layers: made.map((l) => l.blob),
    },
    'application/vnd.oci.image.manifest.v1+json',
  )
  const annotations = {
    'org.opencontainers.image.ref.name': image.name.slice(image.name.lastIndexOf(':') + 1),
    'io.containerd.image.name': fullName(image.name),
  }
  const platform = { architecture: image.architecture, os: 'linux' }
  writeFileSync(join(layout, 'oci-layout'), JSON.stringify({ imageLayoutVersion: '1.0.0' }))
  writeFileSync(
    join(layout, 'index.json'),
    JSON.stringify({ schemaVersion: 2, manifests: [{ ...manifest, annotations, platform }] }),
  )
  execFileSync('tar', [
    ...reproducible,
    '-C',
    layout,
    '-cf',
    `${output}.new`,
    'oci-layout',
    'index.json',
    'blobs',
  ])
  renameSync(`${output}.new`, output)
}

/** As containerd knows it: a name without a registry's host is one of docker.io. */
function fullName(name: string): string {
  const [first = '', ...rest] = name.split('/')
  const hasHost = rest.length > 0 && (/[.:]/.test(first) || first === 'localhost')
  if (hasHost) return name
  return rest.length === 0 ? `docker.io/library/${name}` : `docker.io/${name}`
}

function sha256(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex')
}
