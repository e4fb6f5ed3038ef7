"""Serving models: conversion of checkpoints, synthesis, the vLLM engines and the HTTP server."""
