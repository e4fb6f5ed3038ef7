"""Checkpoints made ready to speak: conversion, synthesis, the vLLM engine."""
