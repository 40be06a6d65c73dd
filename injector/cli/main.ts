#!/usr/bin/env node
import { Command } from 'commander'
import { sentenceOf } from '#shared/errors.ts'
import { version } from '#shared/version.ts'

try {
  await new Command('edgemesh')
    .description('EdgeMesh: puts workloads into the mesh, and checks that it works.')
    .version(version)
    .showHelpAfterError('(see --help)')
    .parseAsync()
} catch (error) {
  console.error(sentenceOf(error))
  process.exit(1)
}
